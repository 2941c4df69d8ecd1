"""Grassmann class representation: `logit_c = gamma || S_c^T x ||_2 / || x ||_2`.

Class c is a k-dimensional subspace with orthonormal basis S_c (d, k), and a feature belongs to
the class whose subspace it is nearest to in angle. The logits depend on the subspaces alone;
k = 1 is the cosine head up to the sign. `spectrim.optim.riemannian_sgd` keeps the bases
orthonormal; any other optimizer may train the rest of the network beside it.

It stores C k d numbers, k times more than a linear head. Source: Wang et al., 2023,
arXiv:2308.01547 (GCR).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spectrim.errors import InputError
from spectrim.linalg.grassmann import orthonormalize
from spectrim.linalg.manifold_parameter import GrassmannParameter

REFERENCE = "Wang et al., 2023, arXiv:2308.01547 (GCR)"


class GrassmannLinear(nn.Module):
    """Map features (..., d) to logits (..., C) in [0, gamma].

    subspaces: the bases (C, d, k), random at the start. Raises InputError unless
    `1 <= subspace_dim <= in_features`.
    """

    def __init__(
        self, in_features: int, classes: int, subspace_dim: int = 8, gamma: float = 25.0
    ):
        super().__init__()
        if not 1 <= subspace_dim <= in_features:
            raise InputError(
                f"subspaces of dimension {subspace_dim} in {in_features} features; expected a "
                f"dimension from 1 to {in_features}"
            )
        self.in_features, self.classes, self.subspace_dim = in_features, classes, subspace_dim
        self.gamma = gamma
        self.subspaces = GrassmannParameter(torch.empty(classes, in_features, subspace_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every subspace uniformly."""
        with torch.no_grad():
            draw = torch.randn(self.subspaces.shape, device=self.subspaces.device)
            self.subspaces.copy_(orthonormalize(draw))

    def forward(self, features: Tensor) -> Tensor:
        bases = self.subspaces.transpose(0, 1).flatten(1)
        coordinates = normalize(features, dim=-1) @ bases
        split = coordinates.unflatten(-1, (self.classes, self.subspace_dim))
        return self.gamma * torch.linalg.vector_norm(split, dim=-1)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, classes={self.classes}, "
            f"subspace_dim={self.subspace_dim}, gamma={self.gamma:g}"
        )


MODULE = GrassmannLinear


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return GrassmannLinear(6, 3, subspace_dim=2), (torch.randn(5, 6, requires_grad=True),)


def violation(module: GrassmannLinear, *inputs: Tensor) -> float:
    """Return the largest entry of `S_c^T S_c - I`."""
    bases = module.subspaces.detach()
    unit = torch.eye(bases.shape[-1], dtype=bases.dtype, device=bases.device)
    return float((bases.mT @ bases - unit).abs().max())
