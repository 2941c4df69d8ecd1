"""The best rank-one Kronecker approximation of a Fisher matrix (Van Loan's rearrangement).

    min_{A, B} || sum_n vec(G_n) vec(G_n)^T - A (x) B ||_F,   G_n of shape (out, in)

The rearranged matrix acts as  M(Z) = sum_n G_n Z G_n^T  on (in, in) matrices and its
transpose as  M^T(Z) = sum_n G_n^T Z G_n  on (out, out) ones; its leading singular triplet
gives A (in, in) and B (out, out). It is never formed: Golub-Kahan-Lanczos needs only the
two products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.errors import NumericalError
from spectrim.linalg.psd import check_finite

TOLERANCE = 1e-8
MOST_STEPS = 40
EXHAUSTED = 1e-12
"""A new left vector this small, relative to the value so far, is rounding."""


def rank_one_kronecker(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (in, in) and B (out, out), both with positive trace, from gradients (n, out,
    in).

    B has Frobenius norm one. Raises NumericalError for gradients that are all zero or not
    finite.
    """
    check_finite(gradients, "weight gradients")
    gradients = gradients.double()
    if not gradients.any():
        raise NumericalError(
            f"weight gradients of shape {tuple(gradients.shape)} are zero: no token reached "
            "this layer; calibrate on more data or leave the layer out"
        )
    right, left, value = _leading_triplet(gradients)
    sign = torch.sign(right.trace())
    return sign * value * right, sign * left


def _forward(gradients: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("noi,npi->op", gradients @ z, gradients)


def _backward(gradients: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("noi,noj->ij", gradients, z @ gradients)


def _leading_triplet(gradients: Tensor) -> tuple[Tensor, Tensor, float]:
    """Run Lanczos bidiagonalization with full reorthogonalization, started from the
    identity.
    """
    size = gradients.shape[2]
    right = [torch.eye(size, dtype=torch.float64) / size**0.5]
    left: list[Tensor] = []
    diagonal: list[float] = []
    above: list[float] = []
    previous = 0.0
    while True:
        u = _orthogonal(_forward(gradients, right[-1]), left)
        length = float(u.norm())
        if length <= EXHAUSTED * previous:
            break
        diagonal.append(length)
        left.append(u / length)
        v = _orthogonal(_backward(gradients, left[-1]), right)
        above.append(float(v.norm()))
        value = float(torch.linalg.matrix_norm(_bidiagonal(diagonal, above, len(right)), 2))
        settled = abs(value - previous) <= TOLERANCE * value
        if settled or len(diagonal) == MOST_STEPS or above[-1] <= TOLERANCE * value:
            break
        previous = value
        right.append(v / above[-1])
    u, s, vh = torch.linalg.svd(_bidiagonal(diagonal, above, len(right)), full_matrices=False)
    combine = lambda basis, weights: sum(w * b for w, b in zip(weights, basis, strict=False))  # noqa: E731
    return combine(right, vh[0]), combine(left, u[:, 0]), float(s[0])


def _bidiagonal(diagonal: list[float], above: list[float], columns: int) -> Tensor:
    """Return (len(diagonal), columns): one column more if the left space is exhausted first."""
    matrix = torch.zeros(len(diagonal), columns, dtype=torch.float64)
    matrix.diagonal().copy_(torch.tensor(diagonal, dtype=torch.float64))
    over = matrix.diagonal(1)
    over.copy_(torch.tensor(above[: len(over)], dtype=torch.float64))
    return matrix


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    for _ in range(2):
        for other in basis:
            vector = vector - (vector * other).sum() * other
    return vector
