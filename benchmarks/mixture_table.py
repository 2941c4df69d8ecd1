"""Bits, low rank and single entries under one budget, against each of them alone.

    python benchmarks/mixture_table.py MODEL --data TRAIN --eval HELD_OUT

One row per budget, in bits per weight of the layers (codes, scales, zeros, factors, entries and
their places; no biases), one column per way of spending it. Alone: the best of round to nearest
and of two-sided GPTQ with one grid for all layers; low rank with factors in four bits; the
fewer bits of GPTQ with corrections in bfloat16 that fill the budget. Chosen by layer, under one
knapsack: the bits, with low rank, with single entries, and all three. Prints Markdown with the
increase of the held-out loss in nats per token, measured in float32, in brackets as predicted;
a dash where nothing fits.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rounding_table import DTYPE, Table
from transformers.utils import logging

from spectrim.errors import InputError
from spectrim.layers.quantized import QUANTIZERS, CompressedLinear, mixed, quantizer_class
from spectrim.models.source import ResidentModel
from spectrim.models.targets import find_targets
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.quantize import (
    Residual,
    add_corrections,
    choose_correction_ranks,
    compute_residual,
    correction_figures,
    with_correction,
)
from spectrim.pipeline.quantizer_options import shares
from spectrim.pipeline.recipe import CorrectionRecipe
from spectrim.planning.quantizer_choices import PricedOptions, choose_options, solver_of
from spectrim.planning.solver import layer_problems

GRIDS = [
    {"bits": bits, "group": group, "scheme": scheme}
    for bits in (2, 3, 4, 5, 6, 8)
    for group in (32, 64, 128)
    for scheme in ("asymmetric", "centered")
]
MORE_RANKS = [{"bits": 0, "rank_share": share} for share in (0.625, 0.75)]
"""For low rank alone at budgets where layers would otherwise not choose it."""
OFFERED = {mixed.Options(**each, **mixed.DRAFT) for each in mixed.CHOICES}
ALONE = ("rtn", "gptq", "low rank, int4", "gptq + corrections")
BY_LAYER: dict[str, Callable[[mixed.Options], bool]] = {
    "bits by layer": lambda o: bool(o.bits) and not o.rank_share and not o.density,
    "+ low rank": lambda o: (bool(o.bits) and not o.density) or (not o.bits and not o.density),
    "+ entries": lambda o: bool(o.bits) and not o.rank_share,
    "all three": lambda o: True,
}
LOW_RANK = "low rank, int4"


class Mixtures(Table):
    """One model with its priced choices; what two columns share is solved once."""

    def __init__(self, given: argparse.Namespace):
        super().__init__(given)
        recipe = self.recipe.with_changes(correction=CorrectionRecipe("gptq", rank=1))
        self.recipe = with_correction(recipe)
        self.calibration = calibrate(self.model, self.tokenizer, self.recipe, self.context)
        names = [target.name for target in find_targets(self.model)]
        source = ResidentModel(self.model)
        problems = layer_problems(source, self.calibration, [(name,) for name in names])
        self.problems = {problem.name: problem for (problem,) in problems}
        self.weights = sum(math.prod(shape) for shape in self.shapes)
        self.solvers = {n: solver_of(p, "mixed") for n, p in self.problems.items()}
        self.one_grid: dict[str, dict[str, CompressedLinear]] = {}

    def bytes_at(self, bits: float) -> int:
        return int(bits * self.weights / 8)

    @cached_property
    def priced(self) -> dict[str, list[PricedOptions]]:
        """The choices of every layer; a file of `--prices` serves the next run."""
        path = self.given.prices
        found = torch.load(path, weights_only=False) if path and path.exists() else {}
        choices = [*OFFERED, *(mixed.Options(**each, **mixed.DRAFT) for each in MORE_RANKS)]
        for name, problem in self.problems.items():
            known = found.get(name, [])
            missing = set(choices) - {choice.options for choice in known}
            if missing:
                more = self._priced(name, problem, sorted(missing, key=str))
                found[name] = sorted([*known, *more], key=lambda choice: choice.bytes)
                if path:
                    torch.save(found, path)
                print(f"priced {name}", file=sys.stderr, flush=True)
        return found

    def _priced(self, name: str, problem: Any, choices: list[Any]) -> list[PricedOptions]:
        shape = problem.weight.shape
        cost = mixed.MixedLinear.cost
        found = [
            PricedOptions(o, cost(shape, o, DTYPE.itemsize), self._predicted(name, layer))
            for o in choices
            for layer in [self.solvers[name](o)]
        ]
        return sorted(found, key=lambda choice: choice.bytes)

    def _predicted(self, name: str, layer: CompressedLinear) -> float:
        problem = self.problems[name]
        statistics = problem.statistics
        error = problem.weight.double() - layer.dense()[0]
        outputs, inputs = statistics["gradient_covariance"], statistics["input_covariance"]
        return float(0.5 * statistics.share * ((outputs @ error) * (error @ inputs)).sum())

    def mixture(self, bits: float, takes: Callable[[mixed.Options], bool]) -> str:
        priced = {n: [c for c in all_ if takes(c.options)] for n, all_ in self.priced.items()}
        chosen = choose_options(priced, self.bytes_at(bits))
        bases = {
            name: self.solvers[name](replace(choice.options, rounds=self.given.rounds))
            for name, choice in chosen.items()
        }
        for line in shares(bases):
            print(f"  {bits}: {line}", file=sys.stderr, flush=True)
        return self._cell(bases)

    def offered(self, bits: float, takes: Callable[[mixed.Options], bool]) -> str:
        return self.mixture(bits, lambda options: options in OFFERED and takes(options))

    def one_grid_for_all(self, bits: float, quantizer: str) -> str:
        """Of the largest grids that fit, one of each scheme, that of less predicted loss."""
        cost = quantizer_class(quantizer).cost
        fitting: dict[str, tuple[int, dict[str, Any]]] = {}
        for grid in GRIDS:
            options = QUANTIZERS.options(quantizer, grid)
            total = sum(cost(shape, options, DTYPE.itemsize) for shape in self.shapes)
            largest = fitting.get(grid["scheme"], (0, {}))[0]
            if largest < total <= self.bytes_at(bits):
                fitting[grid["scheme"]] = total, grid
        if not fitting:
            raise InputError("no grid fits")
        tried = [self._one_grid(quantizer, grid) for _, grid in fitting.values()]
        return self._cell(min(tried, key=self._total))

    def _one_grid(self, quantizer: str, grid: dict[str, Any]) -> dict[str, CompressedLinear]:
        key = f"{quantizer} {grid}"
        if key not in self.one_grid:
            options = QUANTIZERS.options(quantizer, grid)
            compress = QUANTIZERS.get(quantizer).compress
            self.one_grid[key] = {n: compress(p, options) for n, p in self.problems.items()}
            print(
                f"  {key}: {self._total(self.one_grid[key]):.3f}", file=sys.stderr, flush=True
            )
        return self.one_grid[key]

    def _total(self, bases: dict[str, CompressedLinear]) -> float:
        return sum(self._predicted(name, layer) for name, layer in bases.items())

    def corrected(self, bits: float) -> str:
        """The most bits that leave room, in groups of 128, with corrections in bfloat16."""
        room = {b: self.bytes_at(bits) - self.bytes_of(b, 128) for b in (2, 3, 4, 5, 6)}
        fitting = [b for b, left in room.items() if left > 0]
        if not fitting:
            raise InputError("no base fits")
        wanted = CorrectionRecipe(
            "gptq", {"bits": fitting[-1], "group": 128}, rank=0, bytes=room[fitting[-1]]
        )
        recipe = with_correction(self.recipe.with_changes(correction=wanted))
        residual = compute_residual(self.model, self.tokenizer, recipe, self.context)
        ranks = choose_correction_ranks(residual, recipe, DTYPE.itemsize)
        figures = correction_figures(residual, ranks, DTYPE.itemsize)
        model = add_corrections(self.model, residual, ranks, recipe)
        return self._shown(self._loss(model) - self.loss, figures["predicted_loss"])

    def _cell(self, bases: dict[str, CompressedLinear]) -> str:
        is_mixed = any(isinstance(layer, mixed.MixedLinear) for layer in bases.values())
        recipe = self.recipe.with_changes(
            correction=CorrectionRecipe("mixed" if is_mixed else "rtn", rank=0)
        )
        residual = Residual(bases, None)
        model = add_corrections(self.model, residual, dict.fromkeys(bases, 0), recipe)
        return self._shown(self._loss(model) - self.loss, self._total(bases))

    @staticmethod
    def _shown(increase: float, predicted: float) -> str:
        return f"{increase:.3f} ({predicted:.3f})"

    def cells(self, bits: float) -> list[str]:
        ways = {
            "rtn": lambda: self.one_grid_for_all(bits, "rtn"),
            "gptq": lambda: self.one_grid_for_all(bits, "gptq"),
            LOW_RANK: lambda: self.mixture(bits, lambda o: not o.bits and not o.density),
            "gptq + corrections": lambda: self.corrected(bits),
            **{n: lambda t=takes: self.offered(bits, t) for n, takes in BY_LAYER.items()},
        }
        return [self._tried(ways[name]) for name in self.given.columns or ways]

    @staticmethod
    def _tried(make: Callable[[], str]) -> str:
        try:
            return make()
        except InputError as error:
            print(error, file=sys.stderr, flush=True)
            return "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[8, 4.5, 4, 3.5, 3, 2.5, 2])
    parser.add_argument("--columns", nargs="+", choices=[*ALONE, *BY_LAYER])
    parser.add_argument("--rounds", type=int, default=1, help="of refitting")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="evaluated")
    parser.add_argument("--prices", type=Path, help="file to keep the priced choices in")
    parser.add_argument("--cache", type=Path, default=None)
    given = parser.parse_args()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*tokens for")
    table = Mixtures(given)
    columns = given.columns or [*ALONE, *BY_LAYER]
    print(f"bfloat16: {table.loss:.3f} nats\n")
    print("| bits | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns), flush=True)
    for bits in given.bits:
        print(f"| {bits:g} | " + " | ".join(table.cells(bits)) + " |", flush=True)


if __name__ == "__main__":
    main()
