"""What storing factors in 16 bits costs: the same compressed model in float32 and bfloat16.

python benchmarks/half_precision.py MODEL --data TRAIN --eval TEXT
"""

from __future__ import annotations

import argparse

import torch
from transformers.utils import logging

from spectrim import checkpoint
from spectrim.data import BlockSettings
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe
from spectrim.pipeline.replace import replace_layers
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--budget", type=float, default=0.8)
    given = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = checkpoint.load(given.model, dtype=torch.float32)
    settings = BlockSettings(length=256, max_tokens=20_000, keep_tail=True)
    recipe = Recipe(
        budget=given.budget, calibration=CalibrationRecipe(data=given.data, length=256)
    )
    decomposition = factorize(model, tokenizer, recipe, RunContext(Cache.default()))
    print("| layer | weights in | perplexity |")
    print("|---|---|---|")
    for layer in ("lowrank", "pivoted"):
        plan = run_plan(decomposition, recipe.with_changes(layer=layer))
        for dtype in (torch.float32, torch.bfloat16):
            smaller = replace_layers(model, decomposition, plan, dtype)
            figures = evaluate(smaller.float(), tokenizer, given.eval, settings)
            print(f"| {layer} | {str(dtype)[6:]} | {figures['perplexity']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
