"""Print time and memory of a command before its first long step; `--dry-run` stops there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.checkpoint import adapter_base
from spectrim.checkpoint.adapter import BESIDE
from spectrim.cli.console import note
from spectrim.cli.progress import StageProgress, minutes
from spectrim.models.kind import IMAGE_TEXT, kind_of
from spectrim.pipeline.cost import Stage, estimate_rows, estimate_stages
from spectrim.pipeline.memory_plan import in_units
from spectrim.pipeline.peak_memory import peak_in_memory
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.cache import Cache

SHORT = 5.0
"""Seconds below which a run is not announced."""


def base_of(model: str, merge_adapter: bool) -> str:
    """Return the model to look at before it is loaded: of an adapter to merge, its base."""
    if not merge_adapter:
        return model
    base = adapter_base(model)
    beside = Path(base).name.startswith(BESIDE)
    note(f"merging the adapter {model} into {'the model beside it' if beside else base}")
    return base


def note_kind(model: PreTrainedModel, fields: Sequence[str]) -> None:
    """Tell which loss a model is compressed for that is no causal language model."""
    kind = kind_of(model)
    if kind.labeled:
        read = f"; fields {', '.join(fields)}" if fields else ""
        note(f"{kind.name}: its own loss, {kind.units}, on the examples of --data{read}")
    elif kind is IMAGE_TEXT:
        note(
            f"{kind.name}: its language model is compressed on text alone, the rest stays dense"
        )


def announce(
    original: Any, recipe: Recipe, cache: Cache, *, always: bool = False
) -> StageProgress:
    """Tell the stages with their times, and memory; return progress that numbers them."""
    stages = estimate_stages(original.model, original.tokenizer, recipe, cache)
    if not _told(stages, always):
        return StageProgress()
    note(f"memory: at most {in_units(peak_in_memory(original.model, recipe))}")
    return StageProgress([stage.name for stage in stages])


def announce_rows(original: Any, rows: Sequence[Recipe], tokens: int, cache: Cache) -> None:
    """Tell the stages of a table with a row for each recipe, evaluated on `tokens` tokens."""
    model, tokenizer = original.model, original.tokenizer
    _told(estimate_rows(model, tokenizer, rows, tokens, cache), always=False)


def _told(stages: Sequence[Stage], always: bool) -> bool:
    """Print the stages unless they are short; return whether they were printed."""
    total = sum(stage.seconds for stage in stages)
    if total < SHORT and not always:
        return False
    times = ", ".join(f"{stage.name} {minutes(stage.seconds)}" for stage in stages)
    threads = torch.get_num_threads()
    note(
        f"ahead: {times}; in all about {minutes(total)} (min:s) on {threads} "
        f"thread{'s' * (threads != 1)}, less what is cached"
    )
    return True
