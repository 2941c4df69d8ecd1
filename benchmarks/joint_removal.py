"""The loss without any tuning when many bases go at once, by what they are ordered.

    python benchmarks/joint_removal.py arithmetic [--method obd]

Every order is estimated once on the scoring rows, then bases go until the fraction KEPT of the
dense layers' weights is left; the loss is that of the answers of other rows. Markdown on
standard output.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

import spectrim
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.prune_for_task import layer_costs, spectral_copy
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    Recipe,
    TaskRecipe,
)
from spectrim.pipeline.tasks import load_task_rows, sample_rows
from spectrim.pruning import IMPORTANCE, Objective, PruningOptions, SpectralLinear, select
from spectrim.pruning.importance import GradientTerm
from spectrim.pruning.selection_rules import Rule

KEPT = (1.4, 1.0, 0.8, 0.6, 0.4, 0.25)
ESTIMATORS: list[tuple[str, str, dict[str, Any]]] = [
    ("Kronecker", "kronecker", {}),
    ("Kronecker, labels drawn at T = 1", "kronecker", {"temperature": 1.0}),
    ("token Fisher", "fisher", {}),
    ("token Fisher, its size from probes", "scaled_fisher", {"rows": 64}),
    ("BSI, K = 16", "hutchinson", {"probes": 16}),
    ("BSI, 512 probes on a row each", "hutchinson", {"probes": 512, "rows_per_probe": 1}),
]


@contextmanager
def only(layers: dict[str, SpectralLinear], chosen: dict[str, Tensor]) -> Iterator[None]:
    """The other bases' coordinates are zero meanwhile."""
    values = {name: layer.coordinates.value.data for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            kept = torch.zeros_like(values[name])
            kept[chosen[name]] = values[name][chosen[name]]
            layer.coordinates.value.data = kept
        yield
    finally:
        for name, layer in layers.items():
            layer.coordinates.value.data = values[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task", default="arithmetic:train:640")
    parser.add_argument("--method", default="svd")
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()

    model, tokenizer = spectrim.load(arguments.model, dtype=torch.float32)
    recipe = Recipe(
        method=arguments.method,
        layer="lowrank",
        task=TaskRecipe(data=arguments.task),
        calibration=CalibrationRecipe(sequences=256),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
        pruning=PruningOptions(extra_rank=0),
    )
    assert recipe.task is not None
    prepare(model, recipe)
    rows = load_task_rows(model, tokenizer, recipe.task)
    scoring, judging = (Objective(sample_rows(rows, arguments.rows, s), 16) for s in (0, 1))
    spectral, layers = spectral_copy(model, tokenizer, recipe)
    costs = layer_costs(layers, recipe)
    dense = sum(cost.dense for cost in costs.values())

    def show(label: str, scores: dict[str, Tensor], rule: Rule) -> None:
        losses = []
        for kept in KEPT:
            with only(layers, select(scores, costs, int(kept * dense), rule)):
                losses.append(f"{judging.value(spectral):.3f}")
        print(f"| {label} | {' | '.join(losses)} |", flush=True)

    print(f"{arguments.method} bases, loss before {judging.value(spectral):.4f}\n")
    print(f"| ordered by, kept | {' | '.join(map(str, KEPT))} |\n|---|{'---:|' * len(KEPT)}")
    magnitude = {name: layer.singular_values() for name, layer in layers.items()}
    show("magnitude (Basel)", magnitude, "energy")
    for label, name, options in ESTIMATORS:
        found = IMPORTANCE.get(name).estimate(
            spectral, layers, scoring, IMPORTANCE.options(name, options)
        )
        for slope in get_args(GradientTerm):
            show(f"{label}, slopes {slope}", found.order(slope), "global")


if __name__ == "__main__":
    main()
