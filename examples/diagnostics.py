"""Ranks of the weights and norms of the hidden states, of a model and of what was made of it.

    spectrim compress reference -o smaller --budget 0.6
    python examples/diagnostics.py reference smaller --data python:held_out

The same as `spectrim inspect reference smaller --data python:held_out`, as values: means over
layers of effective rank, stable rank and tail exponent, and the Matrix Nuclear-Norm against
matrix entropy, with how many times longer the entropy takes.
"""

from __future__ import annotations

import argparse
from statistics import fmean

import torch

import spectrim
from spectrim.data import BlockSettings, token_blocks
from spectrim.pipeline.inspect import inspect_layers, representation, timings


def figures_of(name: str, data: str, tokens: int) -> dict[str, float]:
    model, tokenizer = spectrim.load(name, dtype=torch.float32)
    layers = inspect_layers(model)
    blocks = token_blocks(
        data, tokenizer, BlockSettings(length=128, max_tokens=tokens, keep_tail=True)
    )
    longest = timings(model, blocks)[-1]
    return {
        "effective_rank": fmean(layer.effective_rank for layer in layers),
        "stable_rank": fmean(layer.stable_rank for layer in layers),
        "tail_exponent": fmean(layer.tail_exponent for layer in layers),
        **representation(model, blocks),
        "entropy_takes_times": longest.entropy_ms / max(longest.nuclear_norm_ms, 1e-6),
    }


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", default="python:held_out")
    parser.add_argument("--tokens", type=int, default=4096)
    given = parser.parse_args(arguments)
    found = {name: figures_of(name, given.data, given.tokens) for name in given.models}
    for figure in next(iter(found.values())):
        print(figure, *(f"{values[figure]:.4g}" for values in found.values()), sep="\t")
    return found


if __name__ == "__main__":
    main()
