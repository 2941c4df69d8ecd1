"""Rounding to nearest against error feedback, with and without low-rank corrections.

    python benchmarks/rounding_table.py MODEL --data TRAIN --eval HELD_OUT

One row per bytes and way of storing: 4, 3 and 2 bits in groups of 32 and 128, and, in the
bytes of 4 and 3 bits, one bit less with low-rank corrections that fill them up. One column per
quantizer, on grids that reach each group's largest weight: `rtn`, `gptq` one-sided (the rows
independent) and `gptq` two-sided. Prints Markdown with the share of bfloat16 and the increase
of the held-out loss in nats per token, predicted by the quadratic model and measured in
float32.
"""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from spectrim import checkpoint
from spectrim.data import BlockSettings
from spectrim.layers.quantized import QUANTIZERS
from spectrim.models.targets import find_targets
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.quantize import (
    add_corrections,
    choose_correction_ranks,
    compute_residual,
    correction_figures,
    with_correction,
)
from spectrim.pipeline.recipe import CalibrationRecipe, CorrectionRecipe, Recipe
from spectrim.pipeline.replace import cast_for_saving
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

DTYPE = torch.bfloat16
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("rtn", {}),
    "gptq, one-sided": ("gptq", {"two_sided": False, "grid": "range"}),
    "gptq, two-sided": ("gptq", {"two_sided": True, "grid": "range"}),
}


class Table:
    """One model, calibrated once."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.model, self.tokenizer = checkpoint.load(given.model, dtype=torch.float32)
        self.context = RunContext(Cache(given.cache))
        calibration = CalibrationRecipe(
            data=given.data, sequences=given.sequences, length=given.length
        )
        self.recipe = Recipe(calibration=calibration, save_dtype="bfloat16")
        self.shapes = [target.shape for target in find_targets(self.model)]
        self.dense = DTYPE.itemsize * sum(math.prod(shape) for shape in self.shapes)
        self.loss = self._loss(cast_for_saving(self.model, DTYPE))

    def _loss(self, model: Any) -> float:
        settings = BlockSettings(
            length=self.given.length, max_tokens=self.given.tokens, keep_tail=True
        )
        figures = evaluate(model.float(), self.tokenizer, self.given.eval, settings)
        return math.log(figures["perplexity"])

    def bytes_of(self, bits: int, group: int) -> int:
        options = QUANTIZERS.options("rtn", {"bits": bits, "group": group})
        cost = QUANTIZERS.get("rtn").LAYER.cost
        return sum(cost(shape, options, DTYPE.itemsize) for shape in self.shapes)

    def row(self, label: str, options: dict[str, int], total: int) -> None:
        """One row: `options` of the quantizers, and corrections up to `total` bytes."""
        room = total - self.bytes_of(**options)
        cells = [self.cell(name, options | more, room) for name, more in WAYS.values()]
        share = f"{total / self.dense:.3f}"
        print(f"| {share} | {label} | " + " | ".join(cells) + " |", flush=True)

    def cell(self, name: str, options: dict[str, Any], room: int) -> str:
        wanted = CorrectionRecipe(name, options, rank=0, bytes=room)
        recipe = with_correction(self.recipe.with_changes(correction=wanted))
        residual = compute_residual(self.model, self.tokenizer, recipe, self.context)
        ranks = choose_correction_ranks(residual, recipe, DTYPE.itemsize)
        figures = correction_figures(residual, ranks, DTYPE.itemsize)
        increase = self._loss(add_corrections(self.model, residual, ranks, recipe)) - self.loss
        predicted = figures.get("predicted_loss")
        return f"{increase:.3f}" + ("" if predicted is None else f" ({predicted:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="evaluated")
    parser.add_argument("--cache", type=Path, default=None)
    given = parser.parse_args()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*tokens for")
    table = Table(given)
    print(f"bfloat16: {table.loss:.3f} nats\n")
    print("| share | stored as | " + " | ".join(WAYS) + " |")
    print("|---|---|" + "---|" * len(WAYS), flush=True)
    for bits in given.bits:
        for group in given.groups:
            total = table.bytes_of(bits, group)
            table.row(f"int{bits}, group {group}", {"bits": bits, "group": group}, total)
            if bits > 2:
                label = f"int{bits - 1} + corrections, group {group}"
                table.row(label, {"bits": bits - 1, "group": group}, total)


if __name__ == "__main__":
    main()
