"""Gradient covariance C_g = E[g g^T] at the layer's output, uncentred, per token.

g is the gradient of the *summed* token loss. With labels from the data this is the
empirical Fisher's factor, with labels sampled from the model the true Fisher's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens, sum_of_outer_products

SIDE = "layer"
NEEDS_GRADIENT = True
REFERENCE = "Li et al., 2026, arXiv:2604.00821"


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {"sum": torch.zeros(shape[0], shape[0], dtype=torch.float64)}


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    state["sum"] += sum_of_outer_products(tokens.gradient)


def finish(state: dict[str, Tensor], count: int) -> Tensor:
    """C_g (out, out)."""
    return state["sum"] / max(count, 1)
