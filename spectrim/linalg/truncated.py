"""The one solver behind every method that is a pair of metrics.

    L_out^T (W C_in W^T) L_out = U diag(s^2) U^T,   left = L_out^{-T} U,   right = (L_out U)^T W

`left[:, :r] @ right[:r]` is the optimum of rank r for every r (Eckart-Young on the
whitened weight `L_out^T W L_in`), and its weighted error is exactly `sum_{i>r} s_i^2`.
No inverse and no square root of C_in appears, and C_in itself only in products with W.
A tall W is solved as W^T, so that all but two products with W have the size of its smaller
side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectrim.linalg.metric import Metric
from spectrim.linalg.psd import check_finite, descending_eigh
from spectrim.linalg.symmetric_products import gram


@dataclass(frozen=True)
class GramDiagonals:
    """The identities that factors satisfy in the damped metrics C + r I they were solved in:

        left^T (C_out + r_out I) left = diag(outer)
        right (C_in + r_in I) right^T = diag(inner)

    statistics: names of C_out and C_in; ridges (r_out, r_in); outer, inner (k,).
    """

    statistics: tuple[str, str]
    ridges: tuple[float, float]
    outer: Tensor
    inner: Tensor

    @classmethod
    def of(
        cls, out_metric: Metric, in_metric: Metric, outer: Tensor, inner: Tensor
    ) -> GramDiagonals | None:
        """Return the diagonals, or None unless both metrics are statistics of the layer."""
        names = out_metric.statistic, in_metric.statistic
        return (
            cls(names, (out_metric.ridge, in_metric.ridge), outer, inner)
            if all(names)
            else None
        )

    def grams(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """Return `left^T C_out left` and `right C_in right^T` (k, k) without the
        covariances.
        """
        return (
            _less_ridge(factors.left, self.ridges[0], self.outer),
            _less_ridge(factors.right.T, self.ridges[1], self.inner),
        )


def _less_ridge(columns: Tensor, ridge: float, diagonal: Tensor) -> Tensor:
    """Return `diag(diagonal) - ridge A^T A` (k, k) of columns A (n, k).

    The diagonal is computed in float64, the off-diagonal ridge term in float32.
    """
    result = gram(columns.float()).double().mul_(-ridge)
    sizes = torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64)
    result.diagonal().copy_(diagonal - ridge * sizes**2)
    return result


@dataclass(frozen=True)
class Factors:
    """A weight as a sum of rank-one terms, most important first.

    Attributes:
        left: (out, k), in float64, or float32 where the weight was.
        right: (k, in), in the same dtype.
        spectrum: (k,), the singular values of the whitened weight, always in float64.
        bias_shift: (k,) or None; a bias absorbs `sum_{i>r} left_i offset_i` of the cut terms.
        solved: the damped metrics in which factors just solved are orthogonal, else None.
    """

    left: Tensor
    right: Tensor
    spectrum: Tensor
    bias_shift: Tensor | None = None
    solved: GramDiagonals | None = None

    @property
    def max_rank(self) -> int:
        return self.spectrum.numel()

    def truncated(self, rank: int) -> tuple[Tensor, Tensor]:
        return self.left[:, :rank], self.right[:rank]

    def weight(self, rank: int) -> Tensor:
        left, right = self.truncated(rank)
        return left @ right

    def bias(self, rank: int, dense_bias: Tensor | None) -> Tensor | None:
        """Return the bias (out,) of the layer truncated at `rank`."""
        if self.bias_shift is None:
            return dense_bias
        shift = self.left[:, rank:].double() @ self.bias_shift[rank:]
        return shift if dense_bias is None else shift + dense_bias.double()

    def split(self, rows: Mapping[str, int]) -> dict[str, Factors]:
        """Split the factors by the rows of the weight, by name; `right` is shared."""
        parts = self.left.split(list(rows.values()))
        return {
            name: Factors(left, self.right, self.spectrum, self.bias_shift)
            for name, left in zip(rows, parts, strict=True)
        }

    def balanced(self) -> Factors:
        """Return the same terms with each pair (left column, right row) scaled to equal
        norms.
        """
        column = torch.linalg.vector_norm(self.left, dim=0, dtype=torch.float64)
        row = torch.linalg.vector_norm(self.right, dim=1, dtype=torch.float64)
        scale = torch.where((column > 0) & (row > 0), (row / column).sqrt(), 1.0)
        offset = None if self.bias_shift is None else self.bias_shift / scale
        solved = self.solved
        if solved is not None:
            outer, inner = solved.outer * scale**2, solved.inner / scale**2
            solved = replace(solved, outer=outer, inner=inner)
        left = self.left * scale.to(self.left)
        right = self.right * (1 / scale).to(self.right)[:, None]
        return Factors(left, right, self.spectrum, offset, solved)


def weighted_svd(weight: Tensor, out_metric: Metric, in_metric: Metric) -> Factors:
    """Return factors of `weight` (out, in) that are optimal in the metric pair at every rank.

    They are in float64 if the weight is, else in float32. Raises NumericalError for non-finite
    weights and singular metrics.
    """
    check_finite(weight, "weight")
    weight = weight if weight.dtype == torch.float64 else weight.float()
    if weight.shape[0] <= weight.shape[1]:
        basis, rest, spectrum = _one_sided(weight, out_metric, in_metric)
        sizes = torch.ones_like(spectrum), spectrum**2
        left, right = basis, rest
    else:
        basis, rest, spectrum = _one_sided(weight.T, in_metric, out_metric)
        sizes = spectrum**2, torch.ones_like(spectrum)
        left, right = rest.T, basis.T
    solved = GramDiagonals.of(out_metric, in_metric, *sizes)
    return Factors(left, right, spectrum, solved=solved).balanced()


def _one_sided(weight: Tensor, near: Metric, far: Metric) -> tuple[Tensor, Tensor, Tensor]:
    """Return a basis (rows, k) of the small side, coefficients (k, columns) and singular
    values.

    Basis and coefficients have the weight's dtype; the singular values (k,) are float64.
    """
    whitened = near.whiten(near.whiten(far.gram(weight.T)).T)
    values, vectors = descending_eigh(whitened)
    basis, mixing = near.unwhiten(vectors).to(weight), near.color(vectors).to(weight)
    return basis, mixing.T @ weight, values.sqrt()
