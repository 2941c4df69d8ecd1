"""Ranks, removed experts and both under one budget of the experts' weights.

    python scripts/train_tiny_mixtures.py TOKENIZER --data TRAIN -o DIR
    python benchmarks/experts_table.py DIR/mixtral DIR/qwen DIR/deepseek \
        --data TRAIN --eval TEXT

Rows: `ranks` cut ranks alone; `REAP` removes the experts of its order, equally many from each
block; `removal` those of least predicted loss, from any block; `both` ranks and experts. Only
the experts' layers are compressed. Columns: kept weights of these, predicted and measured loss
increase in nats per token, on text that neither training nor calibration saw. Statistics are
of the original alone; single layers, blocks and whole plans are measured as by default.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrim.data import BlockSettings
from spectrim.errors import InputError
from spectrim.pipeline.budgets import ExpertRecipe
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.experts import price_experts
from spectrim.pipeline.loaded_model import LoadedModel, load_original
from spectrim.pipeline.plan import factorize, plan, probe_curves
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
)
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import Decomposition
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

ROWS: Mapping[str, ExpertRecipe | None] = {
    "ranks": None,
    "REAP": ExpertRecipe(order="reap", cut_ranks=False),
    "REAP and ranks": ExpertRecipe(order="reap"),
    "removal, equally many": ExpertRecipe(uniform=True, cut_ranks=False),
    "removal": ExpertRecipe(cut_ranks=False),
    "both": ExpertRecipe(),
}
LAYERS_ALONE = ProbeRecipe(per_layer=True, joint=False)
PLANS_ALONE = ProbeRecipe(per_layer=False, joint=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--budgets", default=".8,.6,.5")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=40_000, help="Of the evaluation text.")
    given = parser.parse_args()
    recipe = Recipe(
        include=(r"mlp\.experts\.",),
        calibration=CalibrationRecipe(
            data=given.data, sequences=given.sequences, length=given.length
        ),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    settings = BlockSettings(length=given.length, max_tokens=given.tokens, keep_tail=True)
    budgets = [float(part) for part in given.budgets.split(",")]
    for name in given.models:
        original = load_original(str(name))

        def loss(model: Any, tokenizer: Any = original.tokenizer) -> float:
            return math.log(evaluate(model, tokenizer, given.eval, settings)["perplexity"])

        print(f"\n{name.name}, dense loss {loss(original.model):.4f}\n", flush=True)
        print("| budget | plan | kept | experts left | predicted | measured |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        _table(original, recipe, budgets, loss)


def _table(original: LoadedModel, recipe: Recipe, budgets: list[float], loss: Any) -> None:
    model, tokenizer = original.model, original.tokenizer
    dense = loss(model)
    with tempfile.TemporaryDirectory() as place:
        context = RunContext(Cache(Path(place)))
        alone = recipe.with_changes(probe=LAYERS_ALONE)
        base = factorize(model, tokenizer, alone, context)
        priced = {name: _priced(original, base, recipe, row) for name, row in ROWS.items()}
        for budget in budgets:
            for name, row in ROWS.items():
                chosen = recipe.with_changes(budget=budget, experts=row)
                try:
                    made = plan(priced[name], chosen)
                except InputError as error:
                    print(f"| {budget:g} | {name} | {error} |")
                    continue
                smaller = replace_layers(model, priced[name], made)
                left = " ".join(
                    str(curve.count - len(made.experts[b].removed) if b in made.experts
                        else curve.count)
                    for b, curve in priced["both"].experts.items()
                )  # fmt: skip
                print(
                    f"| {budget:g} | {name} | {made.kept:.3f} | {left} | "
                    f"{made.predicted_loss:+.4f} | {loss(smaller) - dense:+.4f} |",
                    flush=True,
                )


def _priced(
    original: LoadedModel, base: Decomposition, recipe: Recipe, row: ExpertRecipe | None
) -> Decomposition:
    given = recipe.with_changes(experts=row, probe=PLANS_ALONE)
    priced = price_experts(original.model, original.tokenizer, base, given)
    return probe_curves(original.model, original.tokenizer, priced, given)


if __name__ == "__main__":
    main()
