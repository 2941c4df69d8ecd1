"""Several recipes on one model at equal bytes: one calibration, one row per recipe and budget.

    statistics of all recipes, in one pass
      -> per recipe a decomposition -> per budget a plan that fits in its bytes
      -> layers (-> refinement) -> saved, measured, evaluated -> a row

If the recipes have a latency budget, rows are at equal time in place of equal bytes.

A finished row is stored on disk under all that it depends on: model, tokens, texts, recipe,
budget, version. The same call later computes only the missing rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.data import BlockSettings, TokenBlocks, check_vocabulary, token_blocks
from spectrim.errors import InputError
from spectrim.models.context import check_length
from spectrim.models.fingerprint import model_fingerprint
from spectrim.pipeline import compatibility
from spectrim.pipeline.benchmark.profile import StageTimer
from spectrim.pipeline.benchmark.results import BenchRow, DenseResult, RowStore
from spectrim.pipeline.benchmark.run import Subject, dense_figures, rows_of
from spectrim.pipeline.benchmark.spec import named_recipes
from spectrim.pipeline.calibrate import gather
from spectrim.pipeline.calibration_defaults import vocabulary_size
from spectrim.pipeline.evaluate import evaluation_settings
from spectrim.pipeline.inputs import calibration_blocks, prepare
from spectrim.pipeline.latency_table import timing_spec
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.cache import Cache, lasting
from spectrim.runtime.context import ProgressBar, RunContext, silent

BUDGETS = (0.8, 0.6, 0.4)
"""Of each text, unless the settings say otherwise."""


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark.

    Attributes:
        texts: evaluation texts, the calibration's own domain first.
        blocks: None for the first 20,000 tokens in rows of the default length.
        dtype: None for the model's.
        rows: where finished rows are stored; a cache without a directory is replaced by a
            temporary one during the run.
    """

    texts: Sequence[str] = ("python:held_out",)
    blocks: BlockSettings | None = None
    dtype: torch.dtype | None = None
    rows: Path | None = None
    cache: Cache | None = None
    track: ProgressBar = silent


@dataclass(frozen=True)
class Bench:
    """The table so far, in the requested order; `made` counts the rows of this call."""

    dense: DenseResult
    rows: tuple[BenchRow, ...]
    wanted: int
    made: int


def bench(
    model: PreTrainedModel,
    tokenizer: Any,
    recipes: Mapping[str, Recipe],
    budgets: Sequence[float] = BUDGETS,
    settings: BenchSettings | None = None,
) -> Bench:
    """Return a row for every recipe and budget.

    `model` is in float32; fused experts are split. Budgets are shares of the weights, or of the
    dense layers' measured time if the recipes have a `latency`, which all or none must have.
    A recipe that cannot run gives rows with its error. Raises InputError for texts, budgets or
    recipes that cannot be used, ModelError for a model that cannot be calibrated.
    """
    *_, result = bench_steps(model, tokenizer, recipes, budgets, settings)
    return result


def bench_steps(
    model: PreTrainedModel,
    tokenizer: Any,
    recipes: Mapping[str, Recipe],
    budgets: Sequence[float] = BUDGETS,
    settings: BenchSettings | None = None,
) -> Iterator[Bench]:
    """Run `bench`, yielding the table of finished rows first and after each new row."""
    settings = settings or BenchSettings()
    wanted = {n: [_at(r, budget) for budget in budgets] for n, r in recipes.items()}
    if not recipes or not budgets:
        raise InputError("a benchmark needs at least one recipe and one budget")
    for recipe in recipes.values():
        compatibility.check(recipe, compatibility.BENCH)
    if len({r.latency and r.latency.tokens for r in recipes.values()}) > 1:
        raise InputError(
            "rows are compared at equal bytes, or at equal time for as many tokens: give all "
            "recipes the same latency, or none"
        )
    if len(set(budgets)) < len(budgets):
        raise InputError(f"a budget is named twice in {', '.join(map(str, budgets))}")
    with lasting(settings.cache) as cache:
        original = LoadedModel(model, tokenizer, settings.dtype or model.dtype)
        texts = _texts(model, tokenizer, settings)
        subject = Subject(original, texts, RunContext(cache, settings.track))
        yield from _steps(subject, RowStore(settings.rows), wanted)


def _at(recipe: Recipe, budget: float) -> Recipe:
    if recipe.latency is None:
        return recipe.with_changes(budget=budget)
    return recipe.with_changes(budget=budget, latency=replace(recipe.latency, budget=budget))


def _steps(
    subject: Subject, store: RowStore, wanted: Mapping[str, Sequence[Recipe]]
) -> Iterator[Bench]:
    total = sum(map(len, wanted.values()))
    for recipes in wanted.values():
        prepare(subject.original.model, recipes[0], subject.context.cache)
    fixed = _fixed_key(subject)
    dense = store.dense(fixed)
    if dense is None:
        dense = dense_figures(subject)
        store.keep(fixed, dense)
    keys = _keys(subject, fixed, wanted)
    done = {(name, budget): store.row(key, name) for (name, budget), key in keys.items()}
    missing = {n: [r for r in rs if done[n, r.budget] is None] for n, rs in wanted.items()}
    result = Bench(dense, _rows(done), total, 0)
    yield result
    shared = _gathered(subject, [recipes[0] for recipes in missing.values() if recipes])
    for name, recipes in missing.items():
        for row in rows_of(subject, dense, name, recipes):
            row = replace(row, seconds=_with_shared(row.seconds, shared))
            done[name, row.budget] = row
            if row.error is None:
                store.keep(keys[name, row.budget], row)
            result = replace(result, rows=_rows(done), made=result.made + 1)
            yield result


def _gathered(subject: Subject, recipes: Sequence[Recipe]) -> float:
    """Return the seconds of the passes that serve all new rows."""
    clock = StageTimer(subject.timer)
    with clock("calibrate"):
        if recipes:
            original = subject.original
            gather(original.model, original.tokenizer, recipes, subject.context)
    return clock.seconds["calibrate"]


def _with_shared(seconds: Mapping[str, float], shared: float) -> dict[str, float]:
    return {**seconds, "calibrate": seconds.get("calibrate", 0.0) + shared}


def _rows(done: Mapping[tuple[str, float], BenchRow | None]) -> tuple[BenchRow, ...]:
    return tuple(row for row in done.values() if row is not None)


def _texts(
    model: PreTrainedModel, tokenizer: Any, settings: BenchSettings
) -> dict[str, TokenBlocks]:
    """Return the checked token blocks by text. Raises InputError."""
    if not settings.texts or len(set(settings.texts)) < len(settings.texts):
        raise InputError("expected one or more evaluation texts, each named once")
    blocks = settings.blocks or evaluation_settings(model)
    check_length(model, blocks.length)
    found = {text: token_blocks(text, tokenizer, blocks) for text in settings.texts}
    for each in found.values():
        check_vocabulary(each, vocabulary_size(model))
    return found


def _fixed_key(subject: Subject) -> dict[str, Any]:
    """Return the part of the key that all rows and the original's figures share."""
    return {
        "model": model_fingerprint(subject.original.model),
        "texts": {name: blocks.fingerprint for name, blocks in subject.texts.items()},
        "dtype": str(subject.original.dtype),
    }


def _keys(
    subject: Subject, fixed: dict[str, Any], wanted: Mapping[str, Sequence[Recipe]]
) -> dict[tuple[str, float], dict[str, Any]]:
    """Return the keys by name and budget.

    They contain the calibration's tokens, not the name; for rows at equal time the machine.
    """
    keys = {}
    for name, recipes in wanted.items():
        original = subject.original
        blocks = calibration_blocks(
            original.model, original.tokenizer, recipes[0], cache=subject.context.cache
        )
        for recipe in recipes:
            own = {"recipe": recipe.to_dict(), "tokens": blocks.fingerprint}
            if recipe.latency is not None:
                own["place"] = timing_spec(original.with_dtype(recipe)).key()
            keys[name, recipe.budget] = fixed | own
    return keys


__all__ = [
    "BUDGETS",
    "Bench",
    "BenchRow",
    "BenchSettings",
    "DenseResult",
    "bench",
    "bench_steps",
    "named_recipes",
]
