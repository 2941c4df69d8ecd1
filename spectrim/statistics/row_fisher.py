"""Row sums of the diagonal empirical Fisher: `F_i = E_sequences[ sum_j (dL/dW_ij)^2 ]`.

A sequence's weight gradient is `G = sum_t g_t x_t^T`. Its squared row norms follow from the
Gram matrices of the tokens, `||G_i||^2 = g_i^T (X X^T) g_i`, but forming G costs the same
and is simpler.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens

SIDE = "layer"
NEEDS_GRADIENT = True
REFERENCE = "Hsu et al., 2022, arXiv:2207.00112"


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {"sum": torch.zeros(shape[0], dtype=torch.float64)}


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    gradients = tokens.root_weighted(tokens.gradient)
    for index in tokens.sequence.unique():
        rows = tokens.sequence == index
        gradient = gradients[rows].float().T @ tokens.x[rows].float()
        state["sum"] += gradient.double().square().sum(1)


def finish(state: dict[str, Tensor], count: float) -> Tensor:
    """Return the row Fisher (out,), per token."""
    return state["sum"] / max(count, 1)
