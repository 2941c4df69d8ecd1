"""Method x budget on one model: the tables of docs/results.md.

    python benchmarks/method_table.py MODEL --data TRAIN --eval TEXT [--budgets .8,.6,.4]

One calibration per set of statistics serves all recipes. Prints Markdown; seconds are
processor time of this run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers.utils import logging

from spectrim import hub
from spectrim.data import BlockSettings
from spectrim.pipeline.comparing import Subject, compare, dense_figures
from spectrim.recipe import CalibrationRecipe, MeasureRecipe, PathRecipe, Recipe
from spectrim.workspace import Workspace

NO_PATH = PathRecipe(weight=0.0)
PLAIN = MeasureRecipe(layers=False, joint=False)
BASELINES = ("svd", "fwsvd", "asvd", "svd_llm", "afm", "gfwsvd")


def recipes(calibration: CalibrationRecipe) -> dict[str, Recipe]:
    """Published methods as published (uniform, plain factors), then OBD step by step.

    The path average acts below its threshold (budget 0.75) only.
    """
    base = Recipe(calibration=calibration, path=NO_PATH, measure=PLAIN)
    uniform = {"allocation": "uniform", "layer": "lowrank"}
    table = {
        f"{method}, uniform, lowrank": base.with_changes(method=method, **uniform)
        for method in BASELINES
    }
    table["obd, uniform, lowrank"] = base.with_changes(**uniform)
    for layer in ("lowrank", "pivoted"):
        plain = base.with_changes(layer=layer)
        path = plain.with_changes(path=PathRecipe())
        table[f"obd, loss_optimal, {layer}"] = plain
        table[f"+ measured curves, {layer}"] = plain.with_changes(measure=MeasureRecipe())
        table[f"+ path average, {layer}"] = path
        table[f"+ both (default), {layer}"] = path.with_changes(measure=MeasureRecipe())
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--budgets", default="0.8,0.6,0.4")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="evaluated")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--only", default="", help="recipes whose name holds this")
    given = parser.parse_args()
    logging.disable_progress_bar()

    model, tokenizer = hub.load(given.model, dtype=torch.float32)
    settings = BlockSettings(length=given.length, max_tokens=given.tokens, keep_tail=True)
    subject = Subject(
        model,
        tokenizer,
        hub.stored_dtype(given.model) or torch.float32,
        given.eval,
        settings,
        Workspace(given.cache),
    )
    calibration = CalibrationRecipe(
        data=given.data, sequences=given.sequences, length=given.length
    )
    chosen = {n: r for n, r in recipes(calibration).items() if given.only in n}
    dense = dense_figures(subject)
    print(f"dense perplexity {dense['perplexity']:.3f}, {dense['disk_bytes']:,} bytes\n")
    print("| recipe | budget | kept | bytes on disk | predicted | measured | perplexity | s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in compare(subject, chosen, _numbers(given.budgets), dense["loss"]):
        predicted = "-" if row.predicted_increase is None else f"{row.predicted_increase:.4f}"
        print(
            f"| {row.recipe} | {row.budget} | {row.kept:.4f} | {row.disk_bytes:,} "
            f"| {predicted} | {row.measured_increase:.4f} | {row.perplexity:.3f} "
            f"| {row.factorise_seconds:.1f} + {row.compress_seconds:.1f} |",
            flush=True,
        )


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
