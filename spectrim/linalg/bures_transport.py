"""Parallel transport from B to I in Bures-Wasserstein geometry, with exact gradients.

    T(B, V) = U (((b_i + b_j) / 2)^{-1/2} o (U^T V U)) U^T,    B = U diag(b) U^T

An isometry of tangents; twice it is `2 L`, `B L + L B = V`. In its derivative divided
differences of t^{-1/2} over sums of eigenvalues appear, which have a closed form without a
difference:

    (a^{-1/2} - b^{-1/2}) / (a - b) = -1 / (sqrt(a b) (sqrt(a) + sqrt(b)))

so that gradients are exact at equal eigenvalues, where those of `torch.linalg.eigh` are not.

Wang et al., 2025, arXiv:2504.00660 (batch normalization in this geometry).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectrim.linalg.spd import spd_inverse_sqrt, spd_power, spd_sqrt


class _Transport(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, tangent: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(base)
        weights = _weights(values)
        ctx.save_for_backward(values, vectors, tangent)
        return vectors @ (weights * (vectors.T @ tangent @ vectors)) @ vectors.T

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        values, vectors, tangent = ctx.saved_tensors
        inside = (vectors.T @ tangent @ vectors).flatten(0, -3)
        gradient = (vectors.T @ upstream[0] @ vectors).flatten(0, -3)
        slopes = _slopes(values)
        rows = torch.einsum("bij,bkj,ikj->ik", gradient, inside, slopes)
        columns = torch.einsum("bij,bik,kji->kj", gradient, inside, slopes)
        both = rows + columns
        to_base = vectors @ ((both + both.T) / 2) @ vectors.T
        weights = _weights(values)
        to_tangent = vectors @ (weights * (vectors.T @ upstream[0] @ vectors)) @ vectors.T
        return to_base, to_tangent


def _weights(values: Tensor) -> Tensor:
    return ((values.unsqueeze(-1) + values) / 2).rsqrt()


def _slopes(values: Tensor) -> Tensor:
    """Return `(w_kj - w_ij) / (b_k - b_i)` for weights w of sums of eigenvalues, (i, k, j)."""
    roots = ((values.unsqueeze(-1) + values) / 2).sqrt()
    first, second = roots.unsqueeze(1), roots.unsqueeze(0)
    return -0.5 / (first + second) / (first * second)


def transport_to_identity(base: Tensor, tangents: Tensor) -> Tensor:
    """Return tangents (..., n, n) at `base` (n, n), symmetric, as tangents at I."""
    return _Transport.apply(base, tangents)


def to_chart(matrices: Tensor, power: float, metric: Tensor | None = None) -> Tensor:
    """Return `M^-1/2 X^p M^-1/2` (..., n, n), in which the generalized geometry of the metric M
    (n, n) and the power p is that of Bures and Wasserstein; None for M = I.
    """
    points = _symmetric(matrices)
    points = points if power == 1 else spd_power(points, power)
    if metric is None:
        return points
    root = spd_inverse_sqrt(metric)
    return _symmetric(root @ points @ root)


def from_chart(points: Tensor, power: float, metric: Tensor | None = None) -> Tensor:
    """Return X (..., n, n) from its point in the chart; the inverse of `to_chart`."""
    if metric is not None:
        root = spd_sqrt(metric)
        points = root @ points @ root
    points = _symmetric(points)
    return points if power == 1 else spd_power(points, 1 / power)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
