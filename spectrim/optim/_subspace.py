"""Columns of a fixed basis that hold most of a matrix: `S = A Q`, the r longest of S."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from spectrim.linalg.dct import Basis, orthogonal_basis


@lru_cache(maxsize=32)
def basis_for(name: Basis, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the basis (size, size), one per size and device for all layers."""
    return orthogonal_basis(name, size).to(device, dtype)


def rank_of(fraction: float, matrix: Tensor) -> int:
    """Return the rank for a share of the shorter side, at least 1."""
    return max(1, min(min(matrix.shape), round(fraction * min(matrix.shape))))


def narrow(matrix: Tensor) -> Tensor:
    """Return a view with the shorter side as columns."""
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def shaped(step: Tensor, like: Tensor) -> Tensor:
    """Return a step in narrow form in the shape and dtype of its parameter."""
    return (step if step.shape == like.shape else step.T).to(like.dtype)


def longest(projected: Tensor, rank: int, norm: int) -> Tensor:
    """Return the indices (rank,) of the columns of largest l1 or l2 norm, ascending.

    With l2 they lose the least: `||A - A P P^T||^2 = ||A||^2 - sum of kept ||S_j||^2`.
    """
    lengths = torch.linalg.vector_norm(projected, ord=norm, dim=0)
    return lengths.topk(rank).indices.sort().values
