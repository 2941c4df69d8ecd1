"""Statistics: sums over tokens that decompositions and allocations are made from.

One file each. A statistic module declares

    SIDE             "input" (one per group of layers that share an input), or "layer"
    NEEDS_GRADIENT   whether it needs the gradient at the layer's output
    empty(shape)     its state as zeros; shape is the weight's (out, in)
    update(state, tokens)   adds one batch, in place
    finish(state, count)    what a method reads, per token, from the summed state

States are dictionaries of float64 tensors that merge by addition.
"""

from __future__ import annotations

from spectrim.registry import Registry
from spectrim.statistics._tokens import LayerTokens

STATISTICS = Registry("statistic", "spectrim.statistics")

__all__ = ["STATISTICS", "LayerTokens"]
