"""One row after the other: what is missing is made, what is finished is read."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim import checkpoint
from spectrim.data import TokenBlocks
from spectrim.errors import SpectrimError
from spectrim.evaluation import evaluate_model, size
from spectrim.pipeline.benchmark.equal_bytes import allowance, bytes_below, fit_to_budget
from spectrim.pipeline.benchmark.equal_time import fit_to_time
from spectrim.pipeline.benchmark.profile import (
    FactorizeTimer,
    PeakMemory,
    StageTimer,
    timer_for,
)
from spectrim.pipeline.benchmark.results import BenchRow, DenseResult
from spectrim.pipeline.embedding import compress_embeddings
from spectrim.pipeline.latency_table import latency_table
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.prune_for_task import prune_for_task
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.refine import refine
from spectrim.pipeline.replace import cast_for_saving, replace_layers
from spectrim.planning import Decomposition, Plan
from spectrim.refinement import RunContext
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import ProgressBar


@dataclass(frozen=True)
class Subject:
    """The original in float32, the texts that rows are judged on (the first one is the text's
    own domain), and the dtype that results are stored in."""

    model: PreTrainedModel
    tokenizer: Any
    texts: dict[str, TokenBlocks]
    dtype: torch.dtype
    cache: Cache
    track: ProgressBar

    @property
    def timer(self) -> Callable[[], float]:
        return timer_for(self.model.device)

    def dtype_of(self, recipe: Recipe) -> torch.dtype:
        return getattr(torch, recipe.save_dtype) if recipe.save_dtype else self.dtype

    def stored(self, recipe: Recipe) -> Recipe:
        """The recipe with the dtype that its results are stored in."""
        dtype = str(self.dtype_of(recipe)).removeprefix("torch.")
        return recipe.with_changes(save_dtype=dtype)


@dataclass(frozen=True)
class _Factorized:
    """A decomposition, or why there is none: an error, or None where the recipe selects its
    bases itself. What it cost, and the memory in use before."""

    decomposition: Decomposition | SpectrimError | None
    seconds: dict[str, float]
    memory: PeakMemory


def dense_figures(subject: Subject) -> DenseResult:
    """The original's losses by text, and its bytes on disk."""
    figures = {
        name: evaluate_model(subject.model, blocks, ["perplexity"])
        for name, blocks in subject.texts.items()
    }
    return DenseResult(
        distributed.run_on_main(lambda: _file_bytes(subject)),
        {name: found["loss"] for name, found in figures.items()},
        {name: found["perplexity"] for name, found in figures.items()},
    )


def _file_bytes(subject: Subject) -> int:
    with tempfile.TemporaryDirectory() as directory:
        stored: Any = copy.deepcopy(subject.model)
        stored.to(subject.dtype).save_pretrained(directory)
        return size.disk_bytes(directory)


def rows_of(
    subject: Subject, dense: DenseResult, name: str, recipes: Sequence[Recipe]
) -> Iterator[BenchRow]:
    """A row for each budget of one recipe; the decomposition is made once for all it serves."""
    factorized: dict[bool, _Factorized] = {}
    for recipe in recipes:
        along_path = recipe.averages_hessian
        if along_path not in factorized:
            factorized = {along_path: _factorize(subject, recipe)}
        found = factorized[along_path]
        empty = BenchRow(name, recipe.budget, recipe.to_dict(), seconds=dict(found.seconds))
        try:
            if isinstance(found.decomposition, SpectrimError):
                raise found.decomposition
            yield _row(subject, dense, recipe, found, empty)
        except SpectrimError as error:
            yield replace(empty, error=" ".join(str(error).split()))


def _factorize(subject: Subject, recipe: Recipe) -> _Factorized:
    clock = FactorizeTimer(subject.track, subject.timer)
    with PeakMemory() as memory:
        found: Decomposition | SpectrimError | None = None
        try:
            if recipe.pruning is None:
                found = factorize(
                    subject.model,
                    subject.tokenizer,
                    recipe,
                    RunContext(subject.cache, clock.track),
                )
        except SpectrimError as error:
            found = error
        seconds = clock.seconds()
    return _Factorized(found, seconds, memory)


def _row(
    subject: Subject, dense: DenseResult, recipe: Recipe, found: _Factorized, empty: BenchRow
) -> BenchRow:
    clock, dtype = StageTimer(subject.timer), subject.dtype_of(recipe)
    with PeakMemory() as memory:
        with clock("compress"):
            plan, smaller, time = _compressed(subject, recipe, found)
        if recipe.refinement:
            with clock("refine"):
                smaller = _refined(subject, smaller, recipe)
        smaller = cast_for_saving(smaller, dtype)
        sizes, file_bytes = distributed.run_on_main(partial(_saved_sizes, smaller))
        with clock("evaluate"):
            figures = _evaluated(subject, smaller.float())
    allowed = allowance(subject.model, plan, recipe.budget, dtype)
    layer_bytes = bytes_below(plan.modules, sizes)
    losses = {text: each["loss"] - dense.loss[text] for text, each in figures.items()}
    return replace(
        empty,
        kept=allowed.kept(layer_bytes),
        layer_bytes=layer_bytes,
        allowed_bytes=allowed.bytes if recipe.latency is None else None,
        planned_time=plan.provenance.get("latency", {}).get("predicted"),
        time=time,
        file_bytes=file_bytes,
        predicted_loss=plan.predicted_loss,
        loss_increase=losses,
        perplexity={text: each["perplexity"] for text, each in figures.items()},
        kl_divergence=next(iter(figures.values()))["kl_divergence"],
        seconds=found.seconds | clock.seconds,
        peak_memory=max(memory.peak, found.memory.peak) - found.memory.start,
    )


def _compressed(
    subject: Subject, recipe: Recipe, found: _Factorized
) -> tuple[Plan, PreTrainedModel, float | None]:
    """In the original's dtype, with the measured time where the budget is one. Bases that a
    recipe selects are not fitted to their bytes."""
    progress, time = RunContext(subject.cache, subject.track), None
    model, decomposition = subject.model, found.decomposition
    if isinstance(decomposition, Decomposition) and recipe.latency is not None:
        stored = subject.stored(recipe)
        times = latency_table(decomposition, stored, progress)
        plan, time = fit_to_time(model, decomposition, stored, times)
        smaller = replace_layers(model, decomposition, plan)
    elif isinstance(decomposition, Decomposition):
        plan, smaller = fit_to_budget(model, decomposition, recipe, subject.dtype_of(recipe))
    else:
        special = prune_for_task(subject.model, subject.tokenizer, recipe, progress)
        plan, smaller = special.plan, special.model
    smaller = compress_embeddings(subject.model, smaller, subject.tokenizer, recipe, progress)
    return plan, smaller, time


def _refined(subject: Subject, smaller: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    progress = RunContext(subject.cache, subject.track)
    return refine(subject.model, smaller, subject.tokenizer, recipe, progress)


def _saved_sizes(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Bytes by tensor and of the files, from a checkpoint that is written and removed."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "model"
        config, options = model.config.quantization_config, checkpoint.SaveOptions(reload=False)
        checkpoint.save_compressed(model, None, target, config, options)
        return size.tensor_bytes(target), size.disk_bytes(target)


def _evaluated(subject: Subject, model: PreTrainedModel) -> dict[str, dict[str, float]]:
    """Figures by text; the divergence from the original on the first alone."""
    figures: dict[str, dict[str, float]] = {}
    for name, blocks in subject.texts.items():
        wanted = ["perplexity"] if figures else ["perplexity", "kl_divergence"]
        figures[name] = evaluate_model(model, blocks, wanted, subject.model)
    return figures
