"""What covariances in fewer numbers cost in quality: block-diagonal, low-rank plus diagonal.

    python benchmarks/statistics_bytes.py MODEL --data TRAIN --eval TEXT

One calibration in full; its sums are reduced, decomposed, and planned from predicted curves
alone. The first rows have the same number of blocks, or of columns of the sketch, in every
layer; the last a number of bytes for all (`calibration.covariance_bytes`), a share of full.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers.utils import logging

from spectrim import checkpoint
from spectrim.calibration import MemoryBudget
from spectrim.data import BlockSettings
from spectrim.models.targets import find_targets
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.plan import decompose
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
)
from spectrim.pipeline.replace import replace_layers
from spectrim.statistics import STATISTICS, Calibration, CovarianceFormat
from spectrim.statistics._covariance import convert_format

Choice = Callable[[str, str], CovarianceFormat]
"""The form of a statistic's covariance at a layer."""
COUNTS = (2, 4, 8, 16, 64)
COLUMNS = (8, 16, 32, 64, 128)
SHARES = (0.5, 0.25, 0.125)


def main() -> None:
    given = _arguments()
    logging.disable_progress_bar()
    model, tokenizer = checkpoint.load(given.model, dtype=torch.float32)
    recipe = _recipe(given)
    full = calibrate(model, tokenizer, recipe)
    shapes = {target.name: target.shape for target in find_targets(model)}
    print("| covariances | bytes | " + " | ".join(f"{b:g}" for b in given.budget) + " |")
    print("|---|---|" + "---|" * len(given.budget))
    for label, choice in _choices(shapes, recipe, full.bytes):
        calibration = _in_form(full, shapes, choice)
        decomposition = decompose(model, calibration, recipe)
        row = []
        for budget in given.budget:
            plan = run_plan(decomposition, recipe.with_changes(budget=budget))
            smaller = replace_layers(model, decomposition, plan)
            row.append(_perplexity(smaller, tokenizer, given))
        share = calibration.bytes / full.bytes
        shown = " | ".join(f"{value:.3f}" for value in row)
        print(f"| {label} | {share:.3f} | {shown} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--method", default="obd")
    parser.add_argument("--budget", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=10_000, help="evaluated")
    return parser.parse_args()


def _recipe(given: argparse.Namespace) -> Recipe:
    return Recipe(
        method=given.method,
        calibration=CalibrationRecipe(
            data=given.data, sequences=given.sequences, length=256, wide_covariances="full"
        ),
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0),
    )


def _choices(
    shapes: dict[str, tuple[int, int]], recipe: Recipe, most: int
) -> Iterator[tuple[str, Choice]]:
    yield "full", lambda statistic, layer: CovarianceFormat()
    for count in COUNTS:
        yield f"{count} blocks", _constant(CovarianceFormat("block_diagonal", count))
    for columns in COLUMNS:
        yield f"low rank {columns} + diagonal", _constant(CovarianceFormat("low_rank", columns))
    for kind in ("block_diagonal", "low_rank"):
        for share in SHARES:
            room = MemoryBudget(int(share * most), kind)
            forms = room.formats(shapes, recipe.statistics)
            yield f"{share:g} of the bytes, {kind}", lambda s, n, f=forms: f[s, n]


def _constant(form: CovarianceFormat) -> Choice:
    return lambda statistic, layer: form


def _in_form(
    full: Calibration, shapes: dict[str, tuple[int, int]], choice: Choice
) -> Calibration:
    """Wider sketches than the covariance are no gain: those stay in full."""
    states: dict[str, dict[str, Any]] = {}
    for statistic, by_layer in full.states.items():
        width = STATISTICS.get(statistic).width
        states[statistic] = {}
        for name, state in by_layer.items():
            form, size = choice(statistic, name), width(shapes[name])
            smaller = form.kind != "full" and form.bytes(size) < CovarianceFormat().bytes(size)
            states[statistic][name] = convert_format(state, form) if smaller else state
    return replace(full, states=states)


def _perplexity(model: Any, tokenizer: Any, given: argparse.Namespace) -> float:
    settings = BlockSettings(length=256, max_tokens=given.tokens, keep_tail=True)
    return evaluate(model, tokenizer, given.eval, settings)["perplexity"]


if __name__ == "__main__":
    main()
