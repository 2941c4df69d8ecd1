"""The result of an importance estimator, and the Taylor expansion that most of them use.

I_i = L(c_i = 0) - L  ~=  -c_i g_i + 1/2 c_i^2 h_i,    g_i = dL/dc_i, h_i = d2L/dc_i^2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spectrim.pruning.options import GradientTerm
from spectrim.pruning.spectral import SpectralLinear

Negative = Literal["zero", "keep", "magnitude"]
"""A curvature below zero counts as none, as it is, or by its size."""


@dataclass(frozen=True)
class Importance:
    """scores[name] (k,): nats per scored token unless `units` says otherwise.

    errors: standard errors of the scores, where the estimate is random. passes: gradient passes
    over the objective's rows that it took, one over half of them half a pass. gradient_terms:
    the first-order part -c g of each score, where it has one.
    """

    scores: dict[str, Tensor]
    passes: float
    errors: dict[str, Tensor] | None = None
    units: str = "nats per token"
    gradient_terms: dict[str, Tensor] | None = None

    def order(self, gradient_term: GradientTerm) -> dict[str, Tensor]:
        """Return the scores by which bases are removed, the smallest first.

        A slope is exact for one basis. Of many that seem to do harm the slopes add up to a
        long step down the gradient, far beyond where it holds; by size, what the loss depends
        on strongly stays, whichever way.
        """
        if gradient_term == "signed" or self.gradient_terms is None:
            return self.scores
        share = 1.0 if gradient_term == "absolute" else 0.0
        return {
            name: scores - self.gradient_terms[name] + share * self.gradient_terms[name].abs()
            for name, scores in self.scores.items()
        }


def coordinates_of(layer: SpectralLinear) -> Tensor:
    return layer.coordinates.value.detach().double().cpu()


def taylor(coordinates: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
    """I (k,), from gradient and curvature in the coordinates c."""
    return -coordinates * gradient + 0.5 * coordinates.square() * curvature


def clip_curvature(curvature: Tensor, negative: Negative) -> Tensor:
    if negative == "keep":
        return curvature
    return curvature.abs() if negative == "magnitude" else curvature.clamp_min(0.0)


def standard_error(samples: Tensor) -> Tensor:
    """Return it for the mean over the first dimension (K, k); infinite for a single sample."""
    count = len(samples)
    if count < 2:
        return torch.full_like(samples[0], float("inf"))
    return samples.std(0) / count**0.5
