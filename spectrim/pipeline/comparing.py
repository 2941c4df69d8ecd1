"""Several recipes on one model and one text, in one table."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim import hub
from spectrim.data import BlockSettings
from spectrim.evaluation import size
from spectrim.pipeline.compressing import compress
from spectrim.pipeline.evaluating import evaluate
from spectrim.pipeline.factorising import factorise, plan
from spectrim.pipeline.progress import Track, silent
from spectrim.planning import Decomposition
from spectrim.recipe import Recipe
from spectrim.workspace import Workspace


@dataclass(frozen=True)
class Subject:
    """A dense model in float32, the dtype it is stored in, and the text it is judged on."""

    model: PreTrainedModel
    tokenizer: Any
    dtype: torch.dtype
    data: str
    settings: BlockSettings
    workspace: Workspace = field(default_factory=lambda: Workspace(None))
    track: Track = silent


@dataclass(frozen=True)
class Row:
    """One compressed model. Losses in nats per token, seconds of processor time."""

    recipe: str
    budget: float
    kept: float
    disk_bytes: int
    predicted_increase: float | None
    measured_increase: float
    perplexity: float
    factorise_seconds: float
    compress_seconds: float


def dense_figures(subject: Subject) -> dict[str, float]:
    """Perplexity, loss and bytes on disk of the dense model."""
    figures = evaluate(subject.model, subject.tokenizer, subject.data, subject.settings)
    with tempfile.TemporaryDirectory() as directory:
        stored: Any = copy.deepcopy(subject.model)
        stored.to(subject.dtype).save_pretrained(directory)
        figures["disk_bytes"] = size.disk_bytes(directory)
    return figures


def compare(
    subject: Subject, recipes: Mapping[str, Recipe], budgets: Sequence[float], dense_loss: float
) -> Iterator[Row]:
    """A row for every recipe and budget, evaluated as it would be loaded from disk."""
    for name, recipe in recipes.items():
        factorised: dict[bool, tuple[Decomposition, float]] = {}
        for budget in budgets:
            wanted = recipe.with_changes(budget=budget)
            if wanted.averages_path not in factorised:
                factorised[wanted.averages_path] = _timed_factorisation(subject, wanted)
            decomposition, seconds = factorised[wanted.averages_path]
            start = time.process_time()
            chosen = plan(decomposition, wanted)
            smaller = compress(subject.model, decomposition, chosen, subject.dtype)
            spent = time.process_time() - start
            disk_bytes = _disk_bytes(smaller)
            figures = evaluate(
                smaller.float(), subject.tokenizer, subject.data, subject.settings
            )
            yield Row(
                name,
                budget,
                chosen.kept,
                disk_bytes,
                chosen.predicted_loss,
                figures["loss"] - dense_loss,
                figures["perplexity"],
                seconds,
                spent,
            )


def _timed_factorisation(subject: Subject, recipe: Recipe) -> tuple[Decomposition, float]:
    start = time.process_time()
    decomposition = factorise(
        subject.model, subject.tokenizer, recipe, subject.workspace, subject.track
    )
    return decomposition, time.process_time() - start


def _disk_bytes(model: PreTrainedModel) -> int:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "model"
        hub.save_compressed(model, None, target, model.config.quantization_config)
        return size.disk_bytes(target)
