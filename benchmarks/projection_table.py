"""One kind of projection of all layers cut to a share of its full rank: SVD-LLM beside OBD-LLM.

    python benchmarks/projection_table.py MODEL --data TRAIN --eval TEXT [--windows 40]

An independent study's protocol: calibrated on the first 32 rows of 1,024 tokens, packed, in the
text's order; perplexity on windows of 1,024 tokens; the rank is a share of min(out, in), which
may store more numbers than the dense weight. Prints Markdown with perplexities, and their
ratios to the dense model's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from spectrim import checkpoint
from spectrim.data import BlockSettings
from spectrim.models.linear import get_shape
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.presets import load_recipe
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition
from spectrim.planning.probe import changed
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

METHODS = ("svd_llm", "obd_llm")


def ranks_of(
    model: PreTrainedModel, decomposition: Decomposition, kind: str, share: float
) -> dict[str, int]:
    """Return the ranks of all layers of one kind, at a share of their full rank."""
    names = [name for name in decomposition.factors if name.endswith(kind)]
    return {n: round(share * min(get_shape(model.get_submodule(n)))) for n in names}


def recipe_of(method: str, data: str, length: int) -> Recipe:
    """Return the paper's recipe on the study's calibration text."""
    recipe = load_recipe(method)
    calibration = replace(
        recipe.calibration, data=data, sequences=32, length=length, seed=None, rows="packed"
    )
    return recipe.with_changes(calibration=calibration)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--kinds", default="gate_proj,up_proj,down_proj")
    parser.add_argument("--shares", default=".75,.5,.25")
    parser.add_argument("--windows", type=int, default=40, help="of the text, the first ones")
    parser.add_argument("--length", type=int, default=1024, help="of rows and windows")
    parser.add_argument("--cache", type=Path, default=None)
    given = parser.parse_args()
    model, tokenizer = checkpoint.load(given.model, dtype=torch.float32)
    settings = BlockSettings(
        length=given.length, max_tokens=given.windows * given.length, rows="packed"
    )
    context = RunContext(Cache(given.cache))
    recipes = [recipe_of(method, given.data, given.length) for method in METHODS]
    statistics = calibrate(model, tokenizer, recipes[-1], context)
    found = [decompose(model, statistics, recipe) for recipe in recipes]
    dense = evaluate(model, tokenizer, given.eval, settings)["perplexity"]
    print(f"dense perplexity {dense:.3f}\n", flush=True)
    print("| projection | share of rank | SVD-LLM | x dense | OBD-LLM | x dense |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in given.kinds.split(","):
        for share in map(float, given.shares.split(",")):
            cells = []
            for decomposition in found:
                ranks = ranks_of(model, decomposition, kind, share)
                with changed(model, decomposition.factors, ranks, ()):
                    perplexity = evaluate(model, tokenizer, given.eval, settings)["perplexity"]
                cells += [f"{perplexity:.2f}", f"{perplexity / dense:.2f}"]
            print(f"| {kind} | {share:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
