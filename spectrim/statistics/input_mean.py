"""Mean input `E[x]` per channel, which a bias can absorb of a low-rank error.

(in,) for each different input tensor, in float64. No backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens

SIDE = "input"
NEEDS_GRADIENT = False
REFERENCE = "Yu and Wu, 2024, arXiv:2405.18146"


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {"sum": torch.zeros(shape[1], dtype=torch.float64)}


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    state["sum"] += tokens.weighted(tokens.x.double()).sum(0)


def finish(state: dict[str, Tensor], count: float) -> Tensor:
    """Return E[x] (in,)."""
    return state["sum"] / max(count, 1)
