"""Low rank against fewer bits at equal bytes, and both together.

    python benchmarks/bytes_table.py MODEL --data TRAIN --eval IN_DOMAIN --eval ELSEWHERE

Every row stores the layers of the blocks in the bytes of its group, as a share of bfloat16
(codes, scales, zeros and factors; no biases), or is left out. The groups are the bytes of
plain 8 bits, of plain 4 bits, and two below. Prints Markdown; evaluated in float32.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from spectrim import hub, pipeline
from spectrim.data import BlockSettings
from spectrim.errors import SpectrimError
from spectrim.evaluation.size import tensor_bytes
from spectrim.pipeline.compensating import path_figures, ranks_of, residual_of, with_paths
from spectrim.recipe import (
    CalibrationRecipe,
    CompensationRecipe,
    PathRecipe,
    QuantisationRecipe,
    Recipe,
)
from spectrim.surgery.targets import find_targets
from spectrim.workspace import Workspace

DTYPE = torch.bfloat16
BELOW = (0.22, 0.15)
"""Shares of the two groups below plain 4 bits."""


class Table:
    """One model, factorised once; prints a row for what it is given."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.model, self.tokenizer = hub.load(given.model, dtype=torch.float32)
        self.workspace = Workspace(given.cache)
        calibration = CalibrationRecipe(
            data=given.data, sequences=given.sequences, length=given.length
        )
        self.recipe = Recipe(
            calibration=calibration, path=PathRecipe(below=2.0), save_dtype="bfloat16"
        )
        self.decomposition = pipeline.factorise(
            self.model, self.tokenizer, self.recipe, self.workspace
        )
        self.names = [target.name for target in find_targets(self.model)]
        self.dense = DTYPE.itemsize * sum(t.weights for t in find_targets(self.model))
        print("| bytes | stored as | share | " + " | ".join(given.eval) + " |")
        print("|---|---|---|" + "---|" * len(given.eval), flush=True)
        self.row("all", "bfloat16", pipeline.stored_in(self.model, DTYPE), self.dense)

    def row(self, group: str, label: str, model: Any, held: int) -> None:
        found = [self._perplexity(model, text) for text in self.given.eval]
        shown = " | ".join(f"{value:,.2f}" for value in found)
        print(f"| {group} | {label} | {held / self.dense:.3f} | {shown} |", flush=True)

    def _perplexity(self, model: Any, text: str) -> float:
        settings = BlockSettings(
            length=self.given.length, max_tokens=self.given.tokens, keep_tail=True
        )
        figures = pipeline.evaluate(model.float(), self.tokenizer, text, settings)
        return figures["perplexity"]

    def factored(self, share: float, layer: str, bits: int | None) -> tuple[Any, int]:
        """Low rank at `share` of the bytes, and what it holds."""
        quantisation = None if bits is None else QuantisationRecipe(bits, self.given.base)
        multiple = 1 if quantisation is None else quantisation.multiple
        recipe = self.recipe.with_changes(
            budget=share, layer=layer, rank_multiple=multiple, quantisation=quantisation
        )
        plan = pipeline.plan(self.decomposition, recipe)
        smaller = pipeline.compress(self.model, self.decomposition, plan, DTYPE)
        smaller = pipeline.quantise(smaller, plan, recipe)
        return smaller, self.held(smaller)

    def held(self, model: Any) -> int:
        """Bytes of the layers' tensors in a checkpoint that is written and removed."""
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "model"
            hub.save_compressed(model, None, out, model.config.quantization_config)
            sizes = tensor_bytes(out)
        inside = tuple(f"{name}." for name in self.names)
        return sum(size for name, size in sizes.items() if name.startswith(inside))

    def with_path(self, share: float, bits: int) -> tuple[Any, int]:
        """Plain `bits` with low-rank paths that fill up to `share`."""
        options = QuantisationRecipe(bits, self.given.base).options
        alone = CompensationRecipe(self.given.base, options, rank=0, path_bytes=0)
        recipe = pipeline.for_compensation(self.recipe.with_changes(compensation=alone))
        residual = residual_of(self.model, self.tokenizer, recipe)
        base = path_figures(residual, ranks_of(residual, recipe, 2), 2)["base_bytes"]
        room = int(share * self.dense) - base
        given = replace(alone, path_bytes=max(room, 0))
        recipe = recipe.with_changes(compensation=given)
        residual = residual_of(self.model, self.tokenizer, recipe, self.workspace)
        smaller = with_paths(self.model, residual, ranks_of(residual, recipe, 2), recipe)
        return smaller, self.held(smaller)


def groups(table: Table) -> Iterator[tuple[str, float]]:
    """The bytes of each group, as a share, after the plain rows that set them."""
    for bits in (8, 4):
        model, held = table.factored(1.0, "lowrank", bits)
        table.row(f"int{bits}", f"plain int{bits}", model, held)
        yield f"int{bits}", held / table.dense
    for share in BELOW:
        yield f"{share:g}", share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True, action="append")
    parser.add_argument("--base", default="rtn", help="rtn (any rank) or torchao")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="evaluated")
    parser.add_argument("--cache", type=Path, default=None)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="the plan leaves every layer dense")
    table = Table(parser.parse_args())
    for group, share in groups(table):
        for layer in ("lowrank", "pivoted"):
            for bits in (None, 8, 4):
                label = f"low rank, {layer}" + (f", int{bits}" if bits else ", bfloat16")
                _try(
                    table,
                    group,
                    label,
                    lambda b=bits, k=layer, s=share: table.factored(s, k, b),
                )
        if group == "int8":
            _try(table, group, "int4 + paths", partial(table.with_path, share, 4))


def _try(table: Table, group: str, label: str, make: Any) -> None:
    """A row; none for what cannot be that small, or is the plain one over again."""
    try:
        model, held = make()
    except SpectrimError as error:
        print(f"| {group} | {label} | - | {' '.join(str(error).split())} |", flush=True)
        return
    if any(layer["rank"] for layer in model.config.quantization_config.layers.values()):
        table.row(group, label, model, held)


if __name__ == "__main__":
    main()
