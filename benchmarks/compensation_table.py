"""Compressor x path on one model: what a low-rank path gives back, at which bytes.

    python benchmarks/compensation_table.py MODEL --data TRAIN --eval TEXT [--only rtn]

Every row is the model in bfloat16, evaluated in float32. Bytes are of the compressed layers
(codes, scales, values, places and paths; no biases). Prints Markdown. `torchao` rows appear
where it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from spectrim import checkpoint
from spectrim.data import BlockSettings
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.quantize import (
    add_corrections,
    choose_correction_ranks,
    compute_residual,
    correction_figures,
    with_correction,
)
from spectrim.pipeline.recipe import CalibrationRecipe, CorrectionRecipe, Recipe
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn int4 g32": ("rtn", {"bits": 4}),
    "rtn int3 g32": ("rtn", {"bits": 3}),
    "2:4 magnitude": ("sparse_2_4", {}),
    "2:4 wanda": ("wanda_2_4", {}),
    "torchao int8": ("torchao", {"bits": 8}),
    "torchao int4 g32": ("torchao", {"bits": 4}),
}
METHODS = ("eora", "obd")
RANKS = (8, 16)
BYTES = 2


def paths(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Label and recipe of each row of one compressor and method; no path comes with eora."""
    given = recipe.correction or CorrectionRecipe()
    if recipe.method == METHODS[0]:
        yield "none", _with(recipe, given, 0, "uniform")
    for rank in RANKS:
        yield f"{recipe.method} rank {rank}", _with(recipe, given, rank, "uniform")
        loss_optimal = _with(recipe, given, rank, "loss_optimal")
        yield f"{recipe.method} loss_optimal, bytes of {rank}", loss_optimal


def _with(recipe: Recipe, given: CorrectionRecipe, rank: int, allocation: str) -> Recipe:
    compensation = replace(given, rank=rank)
    return recipe.with_changes(correction=compensation, allocation=allocation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="evaluated")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--only", default="", help="compressors whose label holds this")
    given = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = checkpoint.load(given.model, dtype=torch.float32)
    settings = BlockSettings(length=given.length, max_tokens=given.tokens, keep_tail=True)
    calibration = CalibrationRecipe(
        data=given.data, sequences=given.sequences, length=given.length
    )
    dense = evaluate(model, tokenizer, given.eval, settings)
    print(f"dense perplexity {dense['perplexity']:.3f}, loss {dense['loss']:.4f}\n")
    print("| compressor | path | bytes | of bfloat16 | predicted | measured | perplexity |")
    print("|---|---|---|---|---|---|---|")
    for label, (base, options) in BASES.items():
        if given.only not in label or (base == "torchao" and find_spec("torchao") is None):
            continue
        for method in METHODS:
            recipe = Recipe(
                method=method,
                calibration=calibration,
                correction=CorrectionRecipe(base, options),
                save_dtype="bfloat16",
            )
            recipe = with_correction(recipe)
            residual = compute_residual(
                model, tokenizer, recipe, RunContext(Cache(given.cache))
            )
            for path, chosen in paths(recipe):
                ranks = choose_correction_ranks(residual, chosen, BYTES)
                facts = correction_figures(residual, ranks, BYTES)
                smaller = add_corrections(model, residual, ranks, chosen).float()
                found = evaluate(smaller, tokenizer, given.eval, settings)
                spent = facts["base_bytes"] + facts["path_bytes"]
                print(
                    f"| {label} | {path} | {spent:,} | {spent / facts['dense_bytes']:.3f} "
                    f"| {facts['predicted_loss']:.4f} | {found['loss'] - dense['loss']:.4f} "
                    f"| {found['perplexity']:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
