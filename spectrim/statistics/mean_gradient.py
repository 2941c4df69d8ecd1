"""Gradient of the loss for the weight itself: `G = E[g x^T]`, (out, in).

Its inner product with a change D of the weight, `<G, D>`, is the change of the loss to first
order. Near a minimum it is small, but not zero on a finite text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens

SIDE = "layer"
NEEDS_GRADIENT = True
REFERENCE = "Abbasi et al., 2026, arXiv:2602.02848"


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {"sum": torch.zeros(shape, dtype=torch.float64)}


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    state["sum"] += (tokens.weighted(tokens.gradient.float()).T @ tokens.x.float()).double()


def finish(state: dict[str, Tensor], count: float) -> Tensor:
    """Return G (out, in), per token."""
    return state["sum"] / max(count, 1)
