"""What is ahead of a command, before its first long step; `--dry-run` stops there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectrim.cli.console import note
from spectrim.cli.progress import StageProgress, minutes
from spectrim.pipeline.cost import Stage, estimate_rows, estimate_stages
from spectrim.pipeline.memory_plan import in_units
from spectrim.pipeline.peak_memory import peak_in_memory
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.cache import Cache

SHORT = 5.0
"""Seconds below which a run is not announced."""


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
    note(
        f"ahead: {times}; in all about {minutes(total)} (hours:minutes:seconds) with "
        f"{torch.get_num_threads()} threads, less what the cache holds"
    )
    return True
