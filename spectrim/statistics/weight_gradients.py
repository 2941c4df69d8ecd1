"""Gradients of the loss for the weight itself, summed over buckets of sequences.

    G_b = sum_{sequences s with s mod BUCKETS = b} sum_t g_t x_t^T

The batch gradients whose Fisher GFWSVD fits. The bucket of a sequence is fixed by its index
in the data, so the result depends on neither the batch split nor the order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens

SIDE = "layer"
NEEDS_GRADIENT = True
REFERENCE = "Chekalina et al., 2025, arXiv:2505.17974"
BUCKETS = 32


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {"sum": torch.zeros(BUCKETS, *shape, dtype=torch.float64)}


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    gradients = tokens.root_weighted(tokens.gradient)
    bucket = tokens.sequence % BUCKETS
    for index in bucket.unique():
        rows = bucket == index
        gradient = gradients[rows].float().T @ tokens.x[rows].float()
        state["sum"][index] += gradient.double()


def finish(state: dict[str, Tensor], count: float) -> Tensor:
    """Return G (buckets, out, in), scaled by 1 / sqrt(tokens) so that E[G G^T] is per token."""
    return state["sum"] / max(count, 1) ** 0.5
