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

TOLERANCE = 1e-8
MOST_STEPS = 40


def rank_one_kronecker(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """A (in, in) and B (out, out), both with positive trace, from gradients (n, out, in).

    Scaled so that B has Frobenius norm one.
    """
    gradients = gradients.double()
    right, left, value = _leading_triplet(gradients)
    sign = torch.sign(right.trace())
    return sign * value * right, sign * left


def _forward(gradients: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("noi,npi->op", gradients @ z, gradients)


def _backward(gradients: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("noi,noj->ij", gradients, z @ gradients)


def _leading_triplet(gradients: Tensor) -> tuple[Tensor, Tensor, float]:
    """Lanczos bidiagonalisation with full reorthogonalisation from the identity."""
    size = gradients.shape[2]
    right = [torch.eye(size, dtype=torch.float64) / size**0.5]
    left: list[Tensor] = []
    diagonal: list[float] = []
    above: list[float] = []
    previous = 0.0
    while True:
        u = _orthogonal(_forward(gradients, right[-1]), left)
        diagonal.append(float(u.norm()))
        if diagonal[-1] == 0:
            break
        left.append(u / diagonal[-1])
        v = _orthogonal(_backward(gradients, left[-1]), right)
        above.append(float(v.norm()))
        value = float(torch.linalg.matrix_norm(_bidiagonal(diagonal, above), 2))
        settled = abs(value - previous) <= TOLERANCE * value
        if settled or len(diagonal) == MOST_STEPS or above[-1] <= TOLERANCE * value:
            break
        previous = value
        right.append(v / above[-1])
    core = _bidiagonal(diagonal[: len(left)], above[: max(0, len(left) - 1)])
    u, s, vh = torch.linalg.svd(core)
    combine = lambda basis, weights: sum(w * b for w, b in zip(weights, basis, strict=False))  # noqa: E731
    return combine(right, vh[0]), combine(left, u[:, 0]), float(s[0])


def _bidiagonal(diagonal: list[float], above: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, value in enumerate(above[: len(diagonal) - 1]):
        matrix[i, i + 1] = value
    return matrix


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    for _ in range(2):
        for other in basis:
            vector = vector - (vector * other).sum() * other
    return vector
