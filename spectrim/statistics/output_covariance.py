"""Mean `E[y]` and centered covariance `Cov(y) = E[y y^T] - E[y] E[y]^T` of a layer's output.

(out,) and (out, out) per layer, in float64; y includes the layer's bias. No backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.statistics._tokens import LayerTokens, sum_of_outer_products

SIDE = "layer"
NEEDS_GRADIENT = False
REFERENCE = "Yu and Wu, 2024, arXiv:2405.18146"


@dataclass(frozen=True)
class OutputMoments:
    """mean (out,), covariance (out, out), both of y = W x + b."""

    mean: Tensor
    covariance: Tensor


def empty(shape: tuple[int, int]) -> dict[str, Tensor]:
    return {
        "sum": torch.zeros(shape[0], dtype=torch.float64),
        "outer": torch.zeros(shape[0], shape[0], dtype=torch.float64),
    }


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    state["sum"] += tokens.weighted(tokens.y.double()).sum(0)
    state["outer"] += sum_of_outer_products(tokens.root_weighted(tokens.y))


def finish(state: dict[str, Tensor], count: float) -> OutputMoments:
    mean = state["sum"] / max(count, 1)
    covariance = state["outer"] / max(count, 1) - mean[:, None] * mean
    return OutputMoments(mean, covariance)
