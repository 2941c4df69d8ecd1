"""Merge calibrations of two texts by three means of covariances, and measure their drift.

    python benchmarks/covariance_means.py MODEL --texts A B [--budget 0.6]

merging     the covariances of inputs and gradients of both texts, each `--rows` rows, are
            averaged as the pooled sum (arithmetic), by Bures-Wasserstein barycenter, and in
            logarithms; the factors are judged by the predicted loss on held-out rows of each
            text, nats per token (half the weighted squared error)
drift       mean over layers of the Bures-Wasserstein distance of input covariances, relative to
            the root of the trace: of held-out rows of A, and of B, to A's
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import spectrim
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.data import BlockSettings, token_blocks
from spectrim.linalg.spd import (
    bures_wasserstein_distance,
    bures_wasserstein_mean,
    spd_exp,
    spd_log,
)
from spectrim.pipeline.calibrate import prepare
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.planning import make_plan
from spectrim.planning.predicted import predicted_curve
from spectrim.statistics import Calibration

NAMES = ("input_covariance", "gradient_covariance")
FLOOR = 1e-6
Mean = Callable[[Tensor], Tensor]
"""Of covariances (b, n, n)."""


def arithmetic(stack: Tensor) -> Tensor:
    return stack.mean(0)


def bures_wasserstein(stack: Tensor) -> Tensor:
    return bures_wasserstein_mean(_definite(stack), steps=30)


def log_euclidean(stack: Tensor) -> Tensor:
    return spd_exp(spd_log(_definite(stack)).mean(0))


def _definite(stack: Tensor) -> Tensor:
    size = stack.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    return stack + FLOOR * size * torch.eye(stack.shape[-1], dtype=stack.dtype)


def merged(parts: list[Calibration], mean: Mean) -> Calibration:
    first = parts[0]
    states = {
        name: {
            key: {
                "sum": first.tokens
                * mean(
                    torch.stack([part.states[name][key]["sum"] / part.tokens for part in parts])
                )
            }
            for key in first.states[name]
        }
        for name in NAMES
    }
    return replace(first, states=states)


def main() -> None:
    given = _arguments()
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        budget=given.budget,
        layer="lowrank",
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    targets = prepare(model, recipe).targets
    settings = CalibrationSettings(NAMES, tokens_per_batch=1024)
    blocks = [
        token_blocks(text, tokenizer, BlockSettings(2 * given.rows, given.length, 0))
        for text in given.texts
    ]
    halves = [
        [
            calibrate(model, targets, b.select(torch.arange(start, len(b), 2)), settings)
            for b in blocks
        ]
        for start in (0, 1)
    ]
    fitted, judges = halves

    def losses(calibration: Calibration) -> list[float]:
        result = decompose(model, calibration, recipe)
        plan = make_plan(result, recipe.planning)
        return [
            sum(
                float(
                    predicted_curve(
                        replace(result.factors[name], solved=None), judge.layer(name)
                    )[layer.rank]
                )
                for name, layer in plan.layers.items()
                if layer.rank is not None
            )
            for judge in judges
        ]

    print("| statistics | loss on A | loss on B | mean |")
    print("|---|---|---|---|")
    rows = {"A alone": fitted[0], "B alone": fitted[1]}
    rows |= {
        f"both, {mean.__name__}": merged(fitted, mean)
        for mean in (arithmetic, bures_wasserstein, log_euclidean)
    }
    for name, calibration in rows.items():
        first, second = losses(calibration)
        print(
            f"| {name} | {first:.4f} | {second:.4f} | {(first + second) / 2:.4f} |", flush=True
        )
    for name, other in (("held-out A", judges[0]), ("B", fitted[1])):
        print(f"drift of {name} from A: {_drift(fitted[0], other):.4f}", flush=True)


def _drift(first: Calibration, second: Calibration) -> float:
    distances = []
    for key in first.states["input_covariance"]:
        one, other = (c.layer(key)["input_covariance"] for c in (first, second))
        scale = float(one.trace()) ** 0.5
        distances.append(float(bures_wasserstein_distance(one, other)) / scale)
    return sum(distances) / len(distances)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--texts", nargs=2, required=True, metavar=("A", "B"))
    parser.add_argument("--rows", type=int, default=128, help="of each text")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--budget", type=float, default=0.6)
    return parser.parse_args()


if __name__ == "__main__":
    main()
