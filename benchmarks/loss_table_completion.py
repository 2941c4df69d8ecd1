"""Complete a table of measured losses, layers x kept shares, from some of its cells (AltMin).

    python benchmarks/loss_table_completion.py MODEL --data TEXT [--observed 0.33 0.6]

Every cell is the divergence from the original with one layer cut to one share of its ranks
(OBD, no probing), on `--tokens` tokens. Cells are hidden at random, at least one a layer stays;
columns are the mean absolute error of the logarithms of the hidden ones over ten draws:

    predicted             the loss that the statistics predict, nothing measured
    layer's ratio         prediction times the layer's mean measured ratio to it, as probes do
    AltMin, ratios        prediction times a completed table of ratios, of rank 1 and 2
    AltMin, logarithms    the completed table of logarithms itself, of rank 1
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from torch import Tensor

import spectrim
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.data import BlockSettings, token_blocks
from spectrim.linalg.completion import CompletionOptions, complete
from spectrim.linalg.measurements import Entries
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.planning.probe import Probe

SHARES = (0.15, 0.3, 0.45, 0.6, 0.75)
DRAWS = 10
LEAST = 1e-7
"""Nats; below it a measured divergence is rounding."""


def main() -> None:
    given = _arguments()
    measured, predicted = _tables(given)
    print(f"{measured.shape[0]} layers x {measured.shape[1]} shares")
    print(
        "| cells measured | predicted | layer's ratio | AltMin, ratios, rank 1 | rank 2 "
        "| AltMin, logarithms, rank 1 |"
    )
    print("|---|---|---|---|---|---|")
    for share in given.observed:
        errors = defaultdict(list)
        for seed in range(DRAWS):
            seen = _seen(measured.shape, share, seed)
            for name, guess in _guesses(measured, predicted, seen).items():
                errors[name].append(float((guess - measured).abs()[~seen].mean()))
        means = [sum(values) / len(values) for values in errors.values()]
        print(f"| {share:.2f} | {' | '.join(f'{mean:.3f}' for mean in means)} |", flush=True)


def _tables(given: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return logarithms of measured and predicted losses (layers, shares)."""
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        layer="lowrank",
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    blocks = token_blocks(given.data, tokenizer, BlockSettings(96, 128, 0))
    fitted, held = (blocks.select(torch.arange(start, 96, 2)) for start in (0, 1))
    names = ("input_covariance", "gradient_covariance")
    settings = CalibrationSettings(names, tokens_per_batch=1024)
    calibration = calibrate(model, prepare(model, recipe).targets, fitted, settings)
    result = decompose(model, calibration, recipe)
    probe = Probe(model, held, given.tokens)
    measured = torch.zeros(len(result.shapes), len(SHARES), dtype=torch.float64)
    predicted = torch.zeros_like(measured)
    for row, name in enumerate(result.shapes):
        factors = result.factors[name]
        for column, share in enumerate(SHARES):
            rank = max(1, int(share * factors.max_rank))
            measured[row, column] = probe.divergence({name: factors}, {name: rank})
            predicted[row, column] = float(result.curves[name][rank])
    return measured.clamp_min(LEAST).log(), predicted.clamp_min(LEAST).log()


def _seen(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    """Return which cells are measured: each with chance `share`, and one of every layer."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(shape, generator=generator) < share
    column = torch.randint(shape[1], (shape[0],), generator=generator)
    missed = (~seen.any(1)).nonzero().flatten()
    seen[missed, column[missed]] = True
    return seen


def _guesses(measured: Tensor, predicted: Tensor, seen: Tensor) -> dict[str, Tensor]:
    ratios = measured - predicted
    mean = (ratios * seen).sum(1) / seen.sum(1)
    return {
        "predicted": predicted,
        "layer's ratio": predicted + mean[:, None],
        "ratios, rank 1": predicted + _completed(ratios, seen, 1),
        "ratios, rank 2": predicted + _completed(ratios, seen, 2),
        "logarithms, rank 1": _completed(measured, seen, 1),
    }


def _completed(table: Tensor, seen: Tensor, rank: int) -> Tensor:
    rows, columns = seen.nonzero().T
    entries = Entries(rows, columns, (table.shape[0], table.shape[1]))
    found = complete(entries, table[seen], rank, CompletionOptions(ridge=1e-3))
    return found.left @ found.right.T


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--observed", nargs="+", type=float, default=[1 / 3, 0.6])
    return parser.parse_args()


if __name__ == "__main__":
    main()
