"""ACES: move a layer's target toward the output of the original inputs, as far as rank r
allows.

With the whitened target `S + beta D` and its tail outside the top rank-r subspaces of S,
`S_` and `D_`, the share of the target that rank r has to give up is

    f(beta) = ||S_ + beta D_||^2 / ||S + beta D||^2
            = (a + 2 b beta + c beta^2) / (A + 2 B beta + C beta^2)

    f' = 0   <=>   (cB - bC) beta^2 + (cA - aC) beta + (bA - aB) = 0

so its minimum over an interval is at one of at most two roots or at an end. Keeping the
subspaces of S fixed makes f a surrogate: one factorization serves every beta
(SAES-SVD, arXiv:2602.03051).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spectrim.linalg.psd import descending_eigh

_SMALLEST_SQUARE = 1e-24
"""Squared singular values below this share of the largest span no subspace."""


@dataclass(frozen=True)
class AcesObjective:
    """The coefficients of f(beta): `tail` (a, b, c) and `whole` (A, B, C)."""

    tail: tuple[float, float, float]
    whole: tuple[float, float, float]

    @classmethod
    def of(cls, target: Tensor, change: Tensor, rank: int) -> AcesObjective:
        """Return the coefficients for S and D, both (out, in) and whitened."""
        left, right = _top_subspaces(target, rank)
        tails = _outside(target, left, right), _outside(change, left, right)
        return cls(_coefficients(*tails), _coefficients(target, change))

    def __call__(self, beta: float) -> float:
        (a, b, c), (A, B, C) = self.tail, self.whole
        whole = A + 2 * B * beta + C * beta**2
        return (a + 2 * b * beta + c * beta**2) / whole if whole > 0 else 0.0

    def stationary(self) -> list[float]:
        """Return the real beta with f' = 0."""
        (a, b, c), (A, B, C) = self.tail, self.whole
        return _real_roots(c * B - b * C, c * A - a * C, b * A - a * B)

    def best(self, interval: tuple[float, float]) -> float:
        """Return the beta in `interval` with the smallest f; on ties the smallest beta."""
        low, high = interval
        inside = [beta for beta in self.stationary() if low < beta < high]
        return min([low, *sorted(inside), high], key=self)


def _top_subspaces(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the left (out, k) and right (in, k) singular vectors of the k <= rank largest
    values.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = _top_subspaces(matrix.T, rank)
        return left, right
    squares, vectors = descending_eigh(matrix @ matrix.T)
    kept = squares[:rank] > _SMALLEST_SQUARE * squares[0]
    left = vectors[:, :rank][:, kept]
    return left, matrix.T @ left / squares[:rank][kept].sqrt()


def _outside(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return `(I - U U^T) M (I - V V^T)`."""
    rest = matrix - left @ (left.T @ matrix)
    return rest - (rest @ right) @ right.T


def _coefficients(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    pairs = (first, first), (first, second), (second, second)
    squares = [float((one * other).sum()) for one, other in pairs]
    return squares[0], squares[1], squares[2]


def _real_roots(square: float, linear: float, constant: float) -> list[float]:
    """Return the real roots of `square t^2 + linear t + constant`, avoiding cancellation."""
    discriminant = linear**2 - 4 * square * constant
    if discriminant < 0:
        return []
    half = -0.5 * (linear + (discriminant**0.5 if linear >= 0 else -(discriminant**0.5)))
    roots = [half / square] if square else []
    return roots + ([constant / half] if half else [])
