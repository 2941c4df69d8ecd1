"""Subspaces: principal directions, residuals, angles, and steps along geodesics.

    residual(x) = || (I - U U^T)(x - mu) ||^2
    cos(theta_i) = s_i(U^T V),          distance(U, V) = || theta ||_2
    step(U, D) = (U W cos(S) + Q sin(S)) W^T,   D = Q S W^T thin, U^T D = 0

A basis U (..., d, k) has orthonormal columns; every result depends on its span alone. Stacks of
bases are handled at once.

A. Edelman, T. A. Arias, S. T. Smith, "The geometry of algorithms with orthogonality
constraints", 1998.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.errors import InputError


def principal_subspace(covariance: Tensor, size: int | float) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors (d, k) and all eigenvalues (d,), descending and >= 0.

    size: the number k of directions, or, in (0, 1), the share of the trace that they reach
    together. Raises InputError for a size that is neither.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
    return vectors[:, : subspace_size(values, size)], values


def subspace_size(values: Tensor, size: int | float) -> int:
    """Return how many of the descending eigenvalues (d,) are kept for `size`."""
    if isinstance(size, int) and 1 <= size <= len(values):
        return size
    if isinstance(size, float) and 0 < size < 1:
        share = values.cumsum(0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
        return min(int((share < size).sum()) + 1, len(values))
    raise InputError(
        f"a subspace of size {size!r} of {len(values)} directions; expected a whole number "
        f"from 1 to {len(values)}, or a share of the variance between 0 and 1"
    )


def projection_residual(rows: Tensor, basis: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return `|| (I - U U^T)(x - mu) ||^2` of each row x of (n, d), shape (n,)."""
    centered = rows if mean is None else rows - mean
    return (centered - (centered @ basis) @ basis.mT).square().sum(-1)


def orthonormalize(matrix: Tensor) -> Tensor:
    """Return the Q factor (..., d, k) whose R has a positive diagonal, so that it is unique."""
    q, r = torch.linalg.qr(matrix)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q)
    return q * sign.unsqueeze(-2)


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles between two subspaces (..., d, k), ascending, in radians.

    Small angles come from sines and large ones from cosines, so that both are exact to
    rounding.
    """
    overlap = first.mT @ second
    cosines = torch.linalg.svdvals(overlap).clamp(max=1)
    sines = torch.linalg.svdvals(second - first @ overlap).flip(-1).clamp(max=1)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())


def grassmann_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the length of the geodesic between two subspaces (..., d, k), shape (...)."""
    return torch.linalg.vector_norm(principal_angles(first, second), dim=-1)


def basis_affinity(first: Tensor, second: Tensor) -> Tensor:
    """Return `|| U^T V ||_F^2 / k`: 1 for equal subspaces, 0 for orthogonal ones, shape
    (...).

    k is the smaller of the two dimensions.
    """
    smaller = min(first.shape[-1], second.shape[-1])
    return (first.mT @ second).square().sum((-2, -1)) / smaller


def horizontal(basis: Tensor, gradient: Tensor) -> Tensor:
    """Return the tangent part `G - U U^T G` of a gradient (..., d, k)."""
    return gradient - basis @ (basis.mT @ gradient)


def geodesic_step(basis: Tensor, direction: Tensor, length: float = 1.0) -> Tensor:
    """Move along the geodesic of a tangent `direction` (..., d, k) for time `length`.

    The arc is `length * ||direction||_F` long; the result (..., d, k) is orthonormal up to
    rounding. Cost O(d k^2).
    """
    q, s, wh = torch.linalg.svd(direction, full_matrices=False)
    angle = (length * s).unsqueeze(-2)
    return ((basis @ wh.mT) * angle.cos() + q * angle.sin()) @ wh
