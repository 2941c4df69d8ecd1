"""Input covariance C_x = E[x x^T], uncentred, per token.

(in, in) in float64, `in^2` numbers for each different input tensor: layers that read the same
one (q, k and v; gate and up) share it. No backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens, sum_of_outer_products

SIDE = "input"
NEEDS_GRADIENT = False
REFERENCE = "Wang et al., 2024, arXiv:2403.07378"


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {"sum": torch.zeros(shape[1], shape[1], dtype=torch.float64)}


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    state["sum"] += sum_of_outer_products(tokens.x)


def finish(state: dict[str, Tensor], count: int) -> Tensor:
    """C_x (in, in)."""
    return state["sum"] / max(count, 1)
