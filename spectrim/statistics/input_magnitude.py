"""Mean absolute input `E|x_i|` per channel (ASVD's activation scale).

(in,) for each different input tensor, in float64. No backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens

SIDE = "input"
NEEDS_GRADIENT = False
REFERENCE = "Yuan et al., 2023, arXiv:2312.05821"


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {"sum": torch.zeros(shape[1], dtype=torch.float64)}


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    state["sum"] += tokens.weighted(tokens.x.abs().double()).sum(0)


def finish(state: dict[str, Tensor], count: float) -> Tensor:
    """Return E|x| (in,)."""
    return state["sum"] / max(count, 1)
