"""The embedding table alone at several sizes and metrics, every linear layer left dense.

    python benchmarks/embedding_table.py MODEL --data TRAIN --eval TEXT [--budgets .8,.5]

Prints Markdown. `lost` is the part of the metric's own energy that the rank gives up.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from spectrim import checkpoint
from spectrim.data import BlockSettings
from spectrim.decompositions import TABLE_METHODS
from spectrim.evaluation import size
from spectrim.models.embedding import replace_table
from spectrim.pipeline.embedding import PlannedTable, plan_table
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.recipe import CalibrationRecipe, EmbeddingRecipe, Recipe
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

COLUMNS = ("metric", "kept of the table", "rank", "lost", "parameters", "perplexity")


def recipes(calibration: CalibrationRecipe, budget: float) -> Iterator[tuple[str, Recipe]]:
    base = Recipe(calibration=calibration)
    given = {name: EmbeddingRecipe(budget, name) for name in TABLE_METHODS.names()}
    given["afm, lookups only"] = EmbeddingRecipe(budget, "afm", {"output": 0.0})
    for name, embeddings in given.items():
        yield name, base.with_changes(embeddings=embeddings)


def with_table(model: PreTrainedModel, planned: PlannedTable) -> PreTrainedModel:
    """A copy of the dense model around the factored table."""
    result = copy.deepcopy(model)
    replace_table(result, planned.place, planned.table.module(planned.rank))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--budgets", default="0.8,0.5")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20_000, help="evaluated")
    parser.add_argument("--cache", type=Path, default=None)
    given = parser.parse_args()
    logging.disable_progress_bar()

    model, tokenizer = checkpoint.load(given.model, dtype=torch.float32)
    settings = BlockSettings(length=given.length, max_tokens=given.tokens, keep_tail=True)
    calibration = CalibrationRecipe(
        data=given.data, sequences=given.sequences, length=given.length
    )
    dense = evaluate(model, tokenizer, given.eval, settings)["perplexity"]
    print(f"dense perplexity {dense:.3f}, {size.parameters(model):,} parameters\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for budget in map(float, given.budgets.split(",")):
        for name, recipe in recipes(calibration, budget):
            planned = plan_table(model, tokenizer, recipe, RunContext(Cache(given.cache)))
            assert planned is not None
            smaller = with_table(model, planned)
            figures = evaluate(smaller, tokenizer, given.eval, settings)
            print(
                f"| {name} | {planned.kept:.4f} | {planned.rank} "
                f"| {planned.table.lost(planned.rank):.4f} | {size.parameters(smaller):,} "
                f"| {figures['perplexity']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
