"""The nearest orthogonal matrix by products alone: a quintic Newton-Schulz iteration.

    X_0 = G / ||G||_F,    X <- a X + b (X X^T) X + c (X X^T)^2 X

Five steps with the coefficients of Muon bring singular values from [0.01, 1] into about
[0.7, 1.2]: `U V^T` of the SVD `G = U S V^T` up to that band, without computing it.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BAND = (0.6, 1.3)
"""Singular values after five steps, of matrices whose smallest is 1% of the Frobenius norm."""


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return an approximately orthogonal matrix of the shape, dtype and span of `matrix`."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.T
