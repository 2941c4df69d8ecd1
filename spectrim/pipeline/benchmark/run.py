"""Compute the missing rows one after another, and read the finished ones."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from spectrim.pipeline.compress import (
    CompressionResult,
    cut,
    prune,
    refined,
    store,
    with_tables,
)
from spectrim.pipeline.latency_table import latency_table
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition
from spectrim.runtime import distributed
from spectrim.runtime.context import RunContext


@dataclass(frozen=True)
class Subject:
    """The inputs that all rows share.

    Attributes:
        original: the model that every row compresses.
        texts: evaluation datasets by name; the first is of the calibration's own domain.
        context: cache and progress.
    """

    original: LoadedModel
    texts: dict[str, TokenBlocks]
    context: RunContext

    @property
    def timer(self) -> Callable[[], float]:
        return timer_for(self.original.model.device)


@dataclass(frozen=True)
class _Factorized:
    """A decomposition, its cost, and the memory in use before.

    Without one, the error, or None if the recipe prunes bases for a task.
    """

    decomposition: Decomposition | SpectrimError | None
    seconds: dict[str, float]
    memory: PeakMemory


def dense_figures(subject: Subject) -> DenseResult:
    """Return the original's losses by text, and its bytes on disk."""
    figures = {
        name: evaluate_model(subject.original.model, blocks, ["perplexity"])
        for name, blocks in subject.texts.items()
    }
    return DenseResult(
        distributed.run_on_main(lambda: _file_bytes(subject)),
        {name: found["loss"] for name, found in figures.items()},
        {name: found["perplexity"] for name, found in figures.items()},
    )


def _file_bytes(subject: Subject) -> int:
    with tempfile.TemporaryDirectory() as directory:
        stored: Any = copy.deepcopy(subject.original.model)
        stored.to(subject.original.dtype).save_pretrained(directory)
        return size.disk_bytes(directory)


def rows_of(
    subject: Subject, dense: DenseResult, name: str, recipes: Sequence[Recipe]
) -> Iterator[BenchRow]:
    """Yield a row for each budget of one recipe, decomposing once for all that share it."""
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
    clock, original = FactorizeTimer(subject.context.progress, subject.timer), subject.original
    context = replace(subject.context, progress=clock.track)
    with PeakMemory() as memory:
        found: Decomposition | SpectrimError | None = None
        try:
            if recipe.pruning is None:
                found = factorize(original.model, original.tokenizer, recipe, context)
        except SpectrimError as error:
            found = error
        seconds = clock.seconds()
    return _Factorized(found, seconds, memory)


def _row(
    subject: Subject, dense: DenseResult, recipe: Recipe, found: _Factorized, empty: BenchRow
) -> BenchRow:
    clock, original = StageTimer(subject.timer), subject.original
    with PeakMemory() as memory:
        with clock("compress"):
            result, time = _cut(subject, recipe, found.decomposition)
            result = with_tables(original, result, subject.context)
        if recipe.refinement:
            with clock("refine"):
                result = refined(original, result, subject.context)
        result = store(original, result, subject.context)
        sizes, file_bytes = distributed.run_on_main(partial(_saved_sizes, result.model))
        with clock("evaluate"):
            figures = _evaluated(subject, _to_evaluate(result))
    plan = result.plan
    allowed = allowance(original.model, plan, recipe.budget, original.dtype_for(recipe))
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


def _cut(
    subject: Subject, recipe: Recipe, decomposition: object
) -> tuple[CompressionResult, float | None]:
    """Return the model before refinement, and the measured time for a latency budget.

    Pruned models are not fitted to their bytes.
    """
    original, context = subject.original, subject.context
    if not isinstance(decomposition, Decomposition):
        return prune(original, recipe, context), None
    if recipe.latency is None:
        return fit_to_budget(original, decomposition, recipe), None
    stored = original.with_dtype(recipe)
    times = latency_table(decomposition, stored, context)
    plan, time = fit_to_time(original.model, decomposition, stored, times)
    return replace(cut(original, decomposition, plan, recipe), recipe=recipe), time


def _to_evaluate(result: CompressionResult) -> PreTrainedModel:
    """Return the stored model in float32; quantized weights are unchanged."""
    return result.model.float() if result.recipe.quantization is None else result.model


def _saved_sizes(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Return the bytes by tensor and of the files, from a temporary checkpoint."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "model"
        config, options = model.config.quantization_config, checkpoint.SaveOptions(reload=False)
        checkpoint.save_compressed(model, None, target, config, options)
        return size.tensor_bytes(target), size.disk_bytes(target)


def _evaluated(subject: Subject, model: PreTrainedModel) -> dict[str, dict[str, float]]:
    """Return the figures by text; the divergence from the original on the first alone."""
    figures: dict[str, dict[str, float]] = {}
    for name, blocks in subject.texts.items():
        wanted = ["perplexity"] if figures else ["perplexity", "kl_divergence"]
        figures[name] = evaluate_model(model, blocks, wanted, subject.original.model)
    return figures
