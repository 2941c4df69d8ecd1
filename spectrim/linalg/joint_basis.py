"""Estimate how well one basis of rank r serves several matrices, and group those that share
one.

    error(r) = min_{V (in, r)} sqrt( sum_k ||A_k (I - V V^T)||_F^2 / sum_k ||A_k||_F^2 ),

that is the tail of the singular values of the stacked [A_1; ...; A_n], A_k (out_k, in). Each
estimate is the error of some basis, so none is below the true one:

    weyl         the first r right singular vectors of the one matrix that they serve best:
                 1 - max_k sum_{i<=r} s_i(A_k)^2 / sum ||A||^2 under the root. With r at least
                 the rank of A_max it is sqrt((sum ||A||^2 - ||A_max||^2) / sum ||A||^2).
    residual     right singular vectors of A_1 and of the residuals A_k (I - Q Q^T), Q the basis
                 so far; the r that carry most of all matrices' energy, not of their own alone
                 (which can be below the true error where r is less than the rank of A_1).
    incremental  a basis Q with the Gram matrix of the coordinates A_k Q, extended by the QR
                 of the residual, rotated to its eigenvectors and cut to r + oversampling.

Concatenated-matrix SVD, 2026, arXiv:2601.11626; what holds for every r is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.linalg.psd import descending_eigh

Estimate = Callable[[Sequence[Tensor], int], float]
"""Of the error of matrices (out_k, in) at a rank: at least the true one."""
OVERSAMPLING = 16
ROUNDING = 1e-10
"""Relative to a matrix's norm; a smaller residual is rounding and no direction of its own."""


def weyl_bound(matrices: Sequence[Tensor], rank: int) -> float:
    energies = [torch.linalg.svdvals(matrix.double()).square() for matrix in matrices]
    total = float(torch.stack([energy.sum() for energy in energies]).sum())
    return _left(max(float(energy[:rank].sum()) for energy in energies), total)


def residual_bound(matrices: Sequence[Tensor], rank: int) -> float:
    matrices = [matrix.double() for matrix in matrices]
    basis = matrices[0].new_zeros(matrices[0].shape[1], 0)
    for matrix in matrices:
        basis = _widened(basis, matrix)
    energy = torch.stack([(matrix @ basis).square().sum(0) for matrix in matrices]).sum(0)
    total = float(torch.stack([matrix.square().sum() for matrix in matrices]).sum())
    return _left(float(energy.sort(descending=True).values[:rank].sum()), total)


def incremental_estimate(
    matrices: Sequence[Tensor], rank: int, oversampling: int = OVERSAMPLING
) -> float:
    joint = JointBasis.of(matrices[0].shape[1])
    for matrix in matrices:
        joint = joint.extended(matrix, rank + oversampling)
    return joint.error(rank)


ESTIMATES: dict[str, Estimate] = {
    "weyl": weyl_bound,
    "residual": residual_bound,
    "incremental": incremental_estimate,
}


@dataclass(frozen=True)
class JointBasis:
    """An orthonormal basis (in, p) of several matrices.

    energies (p,) of the matrices along the basis, descending; total: the whole energy.
    """

    basis: Tensor
    energies: Tensor
    total: float = 0.0

    @classmethod
    def of(cls, width: int) -> JointBasis:
        """Return the empty basis of matrices with `width` columns."""
        empty = torch.zeros(width, 0, dtype=torch.float64)
        return cls(empty, empty[0])

    def extended(self, matrix: Tensor, keep: int) -> JointBasis:
        """Return the basis with `matrix` (out, in) added, cut to the `keep` directions of most
        energy.
        """
        matrix = matrix.double()
        wider = _widened(self.basis, matrix)
        coordinates = matrix @ wider
        gram = coordinates.T @ coordinates
        gram.diagonal()[: len(self.energies)] += self.energies
        values, vectors = descending_eigh(gram)
        total = self.total + float(matrix.square().sum())
        return JointBasis(wider @ vectors[:, :keep], values[:keep], total)

    def error(self, rank: int) -> float:
        return _left(float(self.energies[:rank].sum()), self.total)


def clusters(
    matrices: Sequence[Tensor],
    estimate: Callable[[Sequence[int]], float],
    threshold: float,
    most: int,
) -> list[list[int]]:
    """Group matrices greedily into clusters of at most `most` indices.

    The largest remaining matrix starts a cluster; the matrix with the least joint error joins
    while `estimate` of the indices together is within `threshold`.
    """
    left = sorted(range(len(matrices)), key=lambda k: -float(matrices[k].norm()))
    found = []
    while left:
        cluster = [left.pop(0)]
        while left and len(cluster) < most:
            errors = [estimate([*cluster, k]) for k in left]
            best = min(range(len(left)), key=errors.__getitem__)
            if errors[best] > threshold:
                break
            cluster.append(left.pop(best))
        found.append(sorted(cluster))
    return sorted(found)


def _widened(basis: Tensor, matrix: Tensor) -> Tensor:
    """Extend the orthonormal basis (in, p) by the right singular vectors of `matrix`'s
    residual.
    """
    _, values, right = torch.linalg.svd(
        matrix - (matrix @ basis) @ basis.T, full_matrices=False
    )
    new = right[values > ROUNDING * matrix.norm()].T
    again = torch.linalg.qr(new - basis @ (basis.T @ new)).Q
    return torch.cat([basis, again], dim=1)


def _left(captured: float, total: float) -> float:
    return max(1 - captured / total, 0.0) ** 0.5 if total > 0 else 0.0
