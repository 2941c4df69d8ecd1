"""Low rank against fewer bits at equal bytes, and both together.

    python benchmarks/bytes_table.py MODEL --data TRAIN --eval IN_DOMAIN --eval ELSEWHERE

Every row stores the layers of the blocks in the bytes of its group, as a share of bfloat16
(codes, scales, zeros and factors; no biases), or is left out. The groups are the bytes of
plain 8, 4, 3 and 2 bits rounded to nearest; with --torchao, which stores other bytes, also
those of its own 8 and 4 bits, and rows of low rank in its bits in every group. A low-rank row
has plain or pivoted factors, whichever is predicted to lose less, rounding counted. Prints
Markdown with the predicted loss in nats; evaluated in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from spectrim import checkpoint
from spectrim.data import BlockSettings
from spectrim.errors import InputError, SpectrimError
from spectrim.evaluation.size import tensor_bytes
from spectrim.models.targets import find_targets
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.plan import factorize, price_rounding
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.quantize import (
    add_corrections,
    choose_correction_ranks,
    compute_residual,
    correction_figures,
    with_correction,
)
from spectrim.pipeline.quantize_factors import quantize_factors
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    CorrectionRecipe,
    HessianAveragingRecipe,
    QuantizationRecipe,
    Recipe,
)
from spectrim.pipeline.replace import cast_for_saving, replace_layers
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

DTYPE = torch.bfloat16
GROUP = 32
PLAIN = (8, 4, 3, 2)
"""Bits of the groups."""
PATHS = {8: (4,), 4: (3, 2), 3: (2,)}
"""By group, the bits that leave room for low-rank corrections in its bytes."""
TORCHAO = (8, 4)
"""The bits that torchao's kernels multiply with."""
Made = tuple[Any, int, str, float | None]
"""A model, the bytes that it holds, what it is, its predicted loss."""


class Table:
    """One model, factorised once; prints a row for what it is given."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.model, self.tokenizer = checkpoint.load(given.model, dtype=torch.float32)
        self.cache = Cache(given.cache)
        calibration = CalibrationRecipe(
            data=given.data,
            sequences=given.sequences,
            length=given.length,
            wide_covariances="full",
        )
        self.recipe = Recipe(
            calibration=calibration,
            hessian_averaging=HessianAveragingRecipe(below_budget=2.0),
            save_dtype="bfloat16",
        )
        self.decomposition = factorize(
            self.model, self.tokenizer, self.recipe, RunContext(self.cache)
        )
        self.calibration = calibrate(
            self.model, self.tokenizer, self.recipe, RunContext(self.cache)
        )
        self.names = [target.name for target in find_targets(self.model)]
        self.dense = DTYPE.itemsize * sum(t.weights for t in find_targets(self.model))
        print("| bytes | stored as | share | predicted | " + " | ".join(given.eval) + " |")
        print("|---|---|---|---|" + "---|" * len(given.eval), flush=True)
        dense = cast_for_saving(self.model, DTYPE)
        self.row("all", (dense, self.dense, "bfloat16", None))

    def row(self, group: str, made: Made) -> None:
        model, held, label, predicted = made
        found = [self._perplexity(model, text) for text in self.given.eval]
        shown = " | ".join(f"{value:,.2f}" for value in found)
        loss = "-" if predicted is None else f"{predicted:.3f}"
        share = f"{held / self.dense:.3f}"
        print(f"| {group} | {label} | {share} | {loss} | {shown} |", flush=True)

    def _perplexity(self, model: Any, text: str) -> float:
        settings = BlockSettings(
            length=self.given.length, max_tokens=self.given.tokens, keep_tail=True
        )
        figures = evaluate(model.float(), self.tokenizer, text, settings)
        return figures["perplexity"]

    def factored(self, share: float, given: QuantizationRecipe | None) -> Made:
        """Low rank at `share` of the bytes, in the kind of layer that promises more."""
        found = [self._planned(share, layer, given) for layer in ("lowrank", "pivoted")]
        fitting = [each for each in found if not isinstance(each, SpectrimError)]
        if not fitting:
            raise InputError(str(found[0]))
        plan, recipe = min(fitting, key=lambda each: each[0].predicted_loss or 0.0)
        if not plan.ranks:
            raise InputError("every layer stays dense: the plain row over again")
        smaller = replace_layers(self.model, self.decomposition, plan, DTYPE)
        smaller = quantize_factors(smaller, plan, recipe)
        label = f"low rank, {recipe.layer}, {_bits(given)}"
        return smaller, self.held(smaller), label, plan.predicted_loss

    def _planned(self, share: float, layer: str, given: QuantizationRecipe | None) -> Any:
        recipe = self.recipe.with_changes(
            budget=share,
            layer=layer,
            rank_multiple=1 if given is None else given.multiple,
            quantization=given,
        )
        try:
            known = price_rounding(self.calibration, self.decomposition, recipe)
            return run_plan(known, recipe), recipe
        except SpectrimError as error:
            return error

    def held(self, model: Any) -> int:
        """Bytes of the layers' tensors in a checkpoint that is written and removed."""
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "model"
            checkpoint.save_compressed(model, None, out, model.config.quantization_config)
            sizes = tensor_bytes(out)
        inside = tuple(f"{name}." for name in self.names)
        return sum(size for name, size in sizes.items() if name.startswith(inside))

    def compensated(self, bits: int, base: str, share: float | None = None) -> Made:
        """Plain `bits`, with a share also low-rank corrections that fill up to it."""
        options = {"bits": bits, "group": GROUP}
        recipe = self._with_paths(base, options, 0)
        residual = compute_residual(self.model, self.tokenizer, recipe)
        ranks = choose_correction_ranks(residual, recipe, DTYPE.itemsize)
        if share is not None:
            taken = correction_figures(residual, ranks, DTYPE.itemsize)["base_bytes"]
            room = int(share * self.dense) - taken
            recipe = self._with_paths(base, options, max(room, 0))
            residual = compute_residual(
                self.model, self.tokenizer, recipe, RunContext(self.cache)
            )
            ranks = choose_correction_ranks(residual, recipe, DTYPE.itemsize)
        figures = correction_figures(residual, ranks, DTYPE.itemsize)
        smaller = add_corrections(self.model, residual, ranks, recipe)
        label = f"int{bits}, {base}" + ("" if share is None else " + low-rank corrections")
        return smaller, self.held(smaller), label, figures.get("predicted_loss")

    def _with_paths(self, base: str, options: dict[str, int], room: int) -> Recipe:
        wanted = CorrectionRecipe(base, options, rank=0, bytes=room)
        return with_correction(self.recipe.with_changes(correction=wanted))


def _bits(given: QuantizationRecipe | None) -> str:
    return "bfloat16" if given is None else f"int{given.bits} ({given.backend})"


def fill(table: Table, bits: int, base: str) -> None:
    """The rows of one group, the plain one first: it sets the bytes."""
    group = f"int{bits} ({base})"
    plain = table.compensated(bits, base)
    table.row(group, plain)
    share = plain[1] / table.dense
    fewer = [b for b in PATHS.get(bits, ()) if base == "rtn" or b in TORCHAO]
    rows = [lambda b=b: table.compensated(b, base, share) for b in fewer]
    given = [None, *_quantized(base)]
    if base == "rtn" and table.given.torchao:
        given += _quantized("torchao")
    rows += [lambda g=g: table.factored(share, g) for g in given]
    for make in rows:
        try:
            table.row(group, make())
        except SpectrimError as error:
            print(f"{group}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def _quantized(base: str) -> list[QuantizationRecipe]:
    return [QuantizationRecipe(bits, base, GROUP) for bits in TORCHAO]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True, action="append")
    parser.add_argument("--torchao", action="store_true", help="rows of its kernels too")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="evaluated")
    parser.add_argument("--cache", type=Path, default=None)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="pivoted layers lose most to 4 bits")
    table = Table(parser.parse_args())
    for bits in PLAIN:
        fill(table, bits, "rtn")
    for bits in TORCHAO if table.given.torchao else ():
        fill(table, bits, "torchao")


if __name__ == "__main__":
    main()
