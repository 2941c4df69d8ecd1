"""Positive semi-definite matrices: damping, Cholesky factors, eigenvalues.

    C_damped = C + damping * mean(diag(C)) * I

`damping` is relative, so a covariance means the same thing whatever its scale.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from spectrim.errors import NumericalError, NumericalWarning

SMALLEST_DAMPING = 1e-12
LARGEST_DAMPING = 1.0


def check_finite(matrix: Tensor, name: str) -> None:
    """Raise NumericalError if `matrix` holds NaN or infinity.

    The sum is checked first, the entries only if the sum is not finite.
    """
    if torch.isfinite(matrix.sum()):
        return
    if bad := int((~torch.isfinite(matrix)).sum()):
        raise NumericalError(
            f"{name} of shape {tuple(matrix.shape)} holds {bad} non-finite values; "
            "expected finite numbers: check the model's weights and the data, "
            "or calibrate in float32"
        )


def check_covariance(matrix: Tensor, name: str) -> None:
    """Raise NumericalError if `matrix` (n, n) is not finite, or zero."""
    check_finite(matrix, name)
    check_signal(matrix.diagonal(), name)


def check_signal(diagonal: Tensor, name: str) -> None:
    """Raise NumericalError if the diagonal (n,) of a covariance is zero."""
    if float(diagonal.mean()) <= 0:
        raise NumericalError(
            f"{name} of shape {(len(diagonal), len(diagonal))} is zero: no token reached this "
            "layer; calibrate on more data or leave the layer out"
        )


def mean_diagonal(matrix: Tensor) -> float:
    return float(matrix.diagonal().mean())


def add_damping(matrix: Tensor, damping: float) -> Tensor:
    """Return `matrix + damping * mean(diag) * I`, shape (n, n)."""
    if damping == 0:
        return matrix
    result = matrix.clone()
    result.diagonal().add_(damping * mean_diagonal(matrix))
    return result


def cholesky(matrix: Tensor, damping: float, name: str = "covariance") -> Tensor:
    """Return the lower factor L of `C_damped = L L^T`, shape (n, n), float64.

    If the matrix is singular at the requested damping, the damping grows tenfold until the
    factor exists, and a NumericalWarning names the value used. Raises NumericalError for
    non-finite input, a zero matrix, or when damping 1 fails.
    """
    matrix = matrix.double()
    check_covariance(matrix, name)
    attempt = damping
    while attempt <= LARGEST_DAMPING:
        factor, info = torch.linalg.cholesky_ex(add_damping(matrix, attempt))
        if info.item() == 0:
            if attempt != damping:
                warnings.warn(
                    f"{name} is singular at damping {damping:g}; used {attempt:g}",
                    NumericalWarning,
                    stacklevel=2,
                )
            return factor
        attempt = max(attempt * 10, SMALLEST_DAMPING)
    raise NumericalError(f"{name} of shape {tuple(matrix.shape)} is not positive semi-definite")


def descending_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (n,), descending and clipped at zero, and eigenvectors (n, n) in
    columns.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.flip(0).clamp_min(0), vectors.flip(1)
