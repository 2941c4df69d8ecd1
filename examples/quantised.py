"""Low rank and 8 or 4 bits in one checkpoint, at a budget in bytes.

    python examples/quantised.py reference --data python --output smaller

The budget is a fraction of the bytes that the layers take dense, so 0.3 with 8 bits keeps about
0.6 of the weights. The same from the command line: `spectrim compress MODEL -o OUT --quantize
int8 --budget 0.3`.
"""

from __future__ import annotations

import argparse

import torch

import spectrim
from spectrim.evaluation.size import disk_bytes
from spectrim.pipeline.recipe import QuantizationRecipe


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="python")
    parser.add_argument("--eval", default="python:held_out")
    parser.add_argument("--output", required=True)
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--base", default="rtn", help="rtn (any rank) or torchao")
    parser.add_argument("--sequences", type=int, default=64)
    given = parser.parse_args(arguments)
    quantization = QuantizationRecipe(given.bits, given.base)
    recipe = spectrim.Recipe(
        budget=given.budget,
        quantization=quantization,
        rank_multiple=quantization.multiple,
        save_dtype="bfloat16",
    )
    data = {"data": given.data, "sequences": given.sequences}
    recipe = recipe.with_changes(calibration=data)
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    decomposition = spectrim.factorize(model, tokenizer, recipe)
    plan = spectrim.plan(decomposition, recipe)
    smaller = spectrim.replace_layers(model, decomposition, plan, torch.bfloat16)
    smaller = spectrim.quantize_factors(smaller, plan, recipe)
    spectrim.save(smaller, tokenizer, given.output)
    again, _ = spectrim.load(given.output, dtype=torch.float32)
    figures = {
        "kept": plan.kept,
        "disk_bytes": float(disk_bytes(given.output)),
        "before": spectrim.evaluate(model, tokenizer, given.eval)["perplexity"],
        "after": spectrim.evaluate(again, tokenizer, given.eval)["perplexity"],
    }
    print(figures)
    return figures


if __name__ == "__main__":
    main()
