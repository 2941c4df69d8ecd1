"""What one file for every size costs: perplexity beside models compressed to one budget each.

    python benchmarks/elastic_table.py MODEL --data TRAIN --eval TEXT [--budgets .9,.8,.6,.4]

Columns of perplexity on the evaluation text: `separate` is the default recipe without averaged
statistics at that budget, its ranks free; `nested` the same factors at the ranks of the nested
order; `file` the checkpoint that holds all sizes, loaded at that budget.

With --train TOKENS, in their place: `best` is the recipe of that name at that budget, which
reads TOKENS in each of its two stages; `elastic` the file after `--recipe best --elastic`. Its
one stage reads TOKENS at four sizes each, twice as many. With --cache a stopped run resumes.

With --bits, budgets count bytes: `separate` is quantized at that budget, its ranks free and its
scales across components; `file` holds all sizes quantized.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectrim.checkpoint import load, resize, save_compressed, sizes_of
from spectrim.data import BlockSettings
from spectrim.pipeline.compress import compress
from spectrim.pipeline.elastic import hold_sizes, plan_elastic
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.loaded_model import LoadedModel, load_original
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.presets import load_recipe
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    ElasticRecipe,
    HessianAveragingRecipe,
    QuantizationRecipe,
    Recipe,
    RefinementRecipe,
)
from spectrim.pipeline.replace import cast_for_saving, replace_layers
from spectrim.planning import Decomposition
from spectrim.planning.nested import nested_plan
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext


@dataclass(frozen=True)
class _Training:
    """Tokens of a stage, the sizes to show, and the rate of the elastic file's training."""

    tokens: int
    budgets: list[float]
    context: RunContext
    learning_rate: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", help="Calibration text (default: Python sources).")
    parser.add_argument("--eval", default="python:held_out")
    parser.add_argument("--budgets", default=".9,.8,.6,.4")
    parser.add_argument("--layer", default="pivoted")
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--bits", type=int, choices=(8, 4), help="Quantize components.")
    parser.add_argument("--train", type=int, help="Tokens of a training stage.")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--learning-rate", type=float, help="Of the elastic file's training.")
    parser.add_argument("--tokens", type=int, default=20_000, help="Of the evaluation text.")
    given = parser.parse_args()
    budgets = [float(part) for part in given.budgets.split(",")]
    recipe = Recipe(
        layer="lowrank" if given.bits else given.layer,
        budget=max(budgets),
        elastic=ElasticRecipe(min(budgets), max(budgets)),
        calibration=CalibrationRecipe(
            data=given.data, sequences=given.sequences, length=given.length
        ),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
        quantization=given.bits and QuantizationRecipe(given.bits, "rtn"),
    )
    original = load_original(given.model)
    settings = BlockSettings(length=given.length, max_tokens=given.tokens, keep_tail=True)

    def perplexity(model: Any) -> float:
        return evaluate(model, original.tokenizer, given.eval, settings)["perplexity"]

    print(f"{given.model}, dense perplexity {perplexity(original.model):.4f}", flush=True)
    if given.train:
        context = RunContext(Cache(given.cache))
        training = _Training(given.train, budgets, context, given.learning_rate)
        _trained_table(original, recipe, training, perplexity)
        return
    if given.bits:
        _quantized_table(original, recipe, budgets, perplexity)
        return
    decomposition = factorize(original.model, original.tokenizer, recipe)
    _table(original, decomposition, recipe, budgets, perplexity)


def _trained_table(
    original: LoadedModel,
    recipe: Recipe,
    training: _Training,
    perplexity: Any,
) -> None:
    """Print `best` at each budget beside the one file that is trained at all of them."""
    context = training.context
    steps = [_with_tokens(step, training.tokens) for step in load_recipe("best").refinement]
    one_stage = replace(steps[-1], options=dict(steps[-1].options))
    if training.learning_rate is not None:
        one_stage.options["learning_rate"] = training.learning_rate
    given = original.model, original.tokenizer
    elastic = recipe.with_changes(refinement=(one_stage,))
    held = compress(*given, elastic, context).model
    figures = {budget: perplexity(resize(held, budget)) for budget in training.budgets}
    print("| budget | best | elastic | elastic against best, nats |")
    print("| --- | --- | --- | --- |")
    for budget, file in figures.items():
        best = recipe.with_changes(
            elastic=None,
            budget=budget,
            refinement=tuple(steps),
            hessian_averaging=HessianAveragingRecipe(),
        )
        one = perplexity(compress(*given, best, context).model)
        print(
            f"| {budget:g} | {one:.4f} | {file:.4f} | {math.log(file / one):+.4f} |", flush=True
        )


def _quantized_table(
    original: LoadedModel, recipe: Recipe, budgets: list[float], perplexity: Any
) -> None:
    """Print models quantized at each budget of bytes beside the one file of all of them."""
    given = original.model, original.tokenizer
    recipe = original.with_dtype(recipe)
    held = compress(*given, recipe).model
    print("| bytes | separate | file | file against separate, nats |")
    print("| --- | --- | --- | --- |")
    for budget in budgets:
        alone = recipe.with_changes(elastic=None, budget=budget)
        one = perplexity(compress(*given, alone).model)
        file = perplexity(resize(held, budget))
        print(
            f"| {budget:g} | {one:.4f} | {file:.4f} | {math.log(file / one):+.4f} |", flush=True
        )


def _with_tokens(step: RefinementRecipe, tokens: int) -> RefinementRecipe:
    return replace(step, options=step.options | {"tokens": tokens}, tokens=tokens)


def _table(
    original: LoadedModel,
    decomposition: Decomposition,
    recipe: Recipe,
    budgets: list[float],
    perplexity: Any,
) -> None:
    sizes, largest = plan_elastic(decomposition, recipe)
    free = recipe.with_changes(elastic=None)
    print("| budget | separate | nested | file | nested against separate | file |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        held = hold_sizes(original.model, decomposition, sizes, largest)
        held = cast_for_saving(held, original.dtype)
        config = held.config.quantization_config
        out = save_compressed(held, original.tokenizer, Path(place) / "elastic", config)
        for budget in budgets:
            ranks = plan(decomposition, free.with_changes(budget=budget))
            nested = nested_plan(decomposition, recipe.planning, sizes, budget)
            one = perplexity(replace_layers(original.model, decomposition, ranks))
            two = perplexity(replace_layers(original.model, decomposition, nested))
            file = perplexity(load(out, budget=budget, dtype=original.model.dtype)[0])
            print(
                f"| {budget:g} | {one:.4f} | {two:.4f} | {file:.4f} | {two / one - 1:+.2%} "
                f"| {file / one - 1:+.2%} |",
                flush=True,
            )
    held_sizes = sizes_of(config.elastic)
    ratio = held_sizes.stored / held_sizes.dense_weights
    print(f"\nthe file holds {ratio:.2f} of the dense layers' weights")


if __name__ == "__main__":
    main()
