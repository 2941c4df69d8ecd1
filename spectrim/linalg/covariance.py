"""Covariances stored in fewer than n^2 numbers: block-diagonal, and low-rank plus diagonal.

    C = diag(C_1, ..., C_k)            sum_b n_b^2 numbers
    C = F F^T + diag(d)                n (s + 1) numbers, F (n, s)

The diagonal is exact in both. Products, the diagonal and a metric are computed from the parts;
any other operation of torch gets the dense matrix. A third form stores no matrix, only what
the decomposition of one weight V (n, k) needs:

    V^T C V and diag(C)                k^2 + n numbers
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.metric import (
    WHOLE,
    CovarianceMetric,
    Metric,
    ProjectedMetric,
    StackedMetric,
)
from spectrim.linalg.psd import SMALLEST_DAMPING, check_finite, check_signal

_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
_CUTOFF = 1e-12
"""Eigenvalues of a sketch's core below this share of the largest are rounding."""


class Covariance(ABC):
    """A symmetric positive semi-definite matrix (n, n)."""

    @abstractmethod
    def diagonal(self) -> Tensor: ...

    @abstractmethod
    def dense(self) -> Tensor: ...

    @abstractmethod
    def metric(self, damping: float, name: str, statistic: str = "") -> Metric:
        """Return the metric of `C + damping * mean(diag) * I`. Raises NumericalError."""

    @abstractmethod
    def centered(self, mean: Tensor) -> Covariance:
        """Return the same form of `C - mean mean^T`, C the exact covariance.

        Subtracting `mean mean^T` from the approximation would not be positive semi-definite.
        """

    @abstractmethod
    def __matmul__(self, matrix: Tensor) -> Tensor: ...

    def __rmatmul__(self, matrix: Tensor) -> Tensor:
        return (self @ matrix.T).T

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self.diagonal())] * 2)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Sequence[Any] = (), options: Any = None
    ) -> Any:
        if function in _PRODUCTS and isinstance(arguments[0], Tensor):
            return arguments[1].__rmatmul__(arguments[0])
        return function(*map(dense, arguments), **(options or {}))


def dense(covariance: Any) -> Any:
    """Return the matrix (n, n) of a covariance of any form; return any other value
    unchanged.
    """
    return covariance.dense() if isinstance(covariance, Covariance) else covariance


def centered(covariance: Tensor | Covariance, mean: Tensor) -> Tensor | Covariance:
    """Return `C - mean mean^T`, C the uncentered covariance of vectors with that mean (n,)."""
    if isinstance(covariance, Covariance):
        return covariance.centered(mean)
    return covariance - mean[:, None] * mean


def make_metric(
    covariance: Tensor | Covariance, damping: float, name: str, statistic: str = ""
) -> Metric:
    """Return the metric of a covariance of any form.

    statistic: the name of the layer's statistic, if the covariance is one and is a matrix.
    Raises NumericalError for a covariance that is zero or not finite.
    """
    if isinstance(covariance, Covariance):
        return covariance.metric(damping, name, statistic)
    return CovarianceMetric(covariance, damping, name, statistic)


class BlockDiagonal(Covariance):
    def __init__(self, blocks: Sequence[Tensor]):
        self.blocks = [block.double() for block in blocks]
        self.sizes = [len(block) for block in blocks]

    def diagonal(self) -> Tensor:
        return torch.cat([block.diagonal() for block in self.blocks])

    def dense(self) -> Tensor:
        return torch.block_diag(*self.blocks)

    def centered(self, mean: Tensor) -> BlockDiagonal:
        parts = zip(self.blocks, mean.split(self.sizes), strict=True)
        return BlockDiagonal([block - part[:, None] * part for block, part in parts])

    def __matmul__(self, matrix: Tensor) -> Tensor:
        rows = matrix.split(self.sizes)
        return torch.cat([b @ r for b, r in zip(self.blocks, rows, strict=True)])

    def metric(self, damping: float, name: str, statistic: str = "") -> Metric:
        """Return the metric with all blocks damped by the mean of the whole diagonal.

        A block of zeros is then not singular.
        """
        added = damping * _mean(self, name)
        parts = []
        for block in self.blocks:
            check_finite(block, name)
            raised = block.clone()
            raised.diagonal().add_(max(added, SMALLEST_DAMPING * _mean(self, name)))
            parts.append(CovarianceMetric(raised, 0.0, name))
        return StackedMetric(parts, self.sizes)


class LowRankDiagonal(Covariance):
    """A covariance `F F^T + diag(d)`.

    factor F (n, s), rest d (n,) non-negative, and the sketch (C T, T, diagonal of C) that both
    were computed from.
    """

    def __init__(
        self,
        factor: Tensor,
        rest: Tensor,
        sketched: tuple[Tensor, Tensor, Tensor] | None = None,
    ):
        self.factor = factor.double()
        self.rest = rest.double()
        self.sketched = sketched

    @classmethod
    def from_sketch(cls, sketch: Tensor, test: Tensor, diagonal: Tensor) -> LowRankDiagonal:
        """Return the approximation from `sketch` = C `test`, both (n, s), and the diagonal (n,)
        of C.

        Nystroem's F F^T = C T (T^T C T)^+ T^T C, plus the rest of the diagonal. Exact where the
        rank of C is at most s. Never above C (Gittens and Mahoney, 2016), so that the rest is
        non-negative up to rounding. Source: Tropp et al., 2017, arXiv:1706.05736.
        """
        core = test.T @ sketch
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = values > _CUTOFF * values[-1].clamp_min(0)
        factor = sketch @ (vectors[:, kept] / values[kept].sqrt())
        rest = (diagonal - factor.square().sum(1)).clamp_min(0)
        return cls(factor, rest, (sketch, test, diagonal))

    def centered(self, mean: Tensor) -> LowRankDiagonal:
        assert self.sketched is not None, "only what was sketched can be centered"
        sketch, test, diagonal = self.sketched
        return LowRankDiagonal.from_sketch(
            sketch - mean[:, None] * (mean @ test), test, diagonal - mean.square()
        )

    def diagonal(self) -> Tensor:
        return self.factor.square().sum(1) + self.rest

    def dense(self) -> Tensor:
        result = self.factor @ self.factor.T
        result.diagonal().add_(self.rest)
        return result

    def __matmul__(self, matrix: Tensor) -> Tensor:
        return self.factor @ (self.factor.T @ matrix) + self.rest[:, None] * matrix

    def metric(self, damping: float, name: str, statistic: str = "") -> Metric:
        floor = max(damping, SMALLEST_DAMPING) * _mean(self, name)
        check_finite(self.factor, name)
        return LowRankMetric(self.factor, self.rest + floor)


class LowRankMetric(Metric):
    """The metric of `C = F F^T + D`, D = diag(d) positive, by its root `L = D^1/2 R`:

    R = (I + V V^T)^1/2 = I + P (sqrt(1 + s^2) - 1) P^T,   V = D^-1/2 F = P s Q^T
    """

    def __init__(self, factor: Tensor, diagonal: Tensor):
        self.factor = factor
        self.scale = diagonal.sqrt()[:, None]
        scaled = factor / self.scale
        squares, vectors = torch.linalg.eigh(scaled.T @ scaled)
        kept = squares > _CUTOFF * squares.amax().clamp_min(1.0) if len(squares) else []
        self.basis = scaled @ (vectors[:, kept] / squares[kept].sqrt())
        self.stretch = (1 + squares[kept]).sqrt()[:, None]

    def whiten(self, matrix: Tensor) -> Tensor:
        return self._root(matrix * self.scale, self.stretch)

    def unwhiten(self, matrix: Tensor) -> Tensor:
        return self._root(matrix, 1 / self.stretch) / self.scale

    def color(self, matrix: Tensor) -> Tensor:
        return self._root(matrix, self.stretch) * self.scale

    def gram(self, matrix: Tensor) -> Tensor:
        matrix = matrix.double()
        inner, outer = self.factor.T @ matrix, self.scale * matrix
        return inner.T @ inner + outer.T @ outer

    def _root(self, matrix: Tensor, stretch: Tensor) -> Tensor:
        """Return (I + P (stretch - 1) P^T) matrix."""
        return matrix + self.basis @ ((stretch - 1) * (self.basis.T @ matrix))


class ProjectedCovariance(Covariance):
    """`V^T C V` (k, k) and the diagonal (n,) of C, V (n, k) a weight or its transpose."""

    def __init__(self, product: Tensor, diagonal: Tensor):
        self.product = product.double()
        self._diagonal = diagonal.double()

    def diagonal(self) -> Tensor:
        return self._diagonal

    def metric(self, damping: float, name: str, statistic: str = "") -> Metric:
        check_finite(self.product, name)
        return ProjectedMetric(self.product, damping * _mean(self, name), statistic)

    def beside(self, square: Tensor) -> Tensor:
        """Return B C B^T (k, k) where V^T = A B, given the invertible A = `square` (k, k)."""
        half = torch.linalg.solve(square.double(), self.product)
        return torch.linalg.solve(square.double(), half.T)

    def dense(self) -> Tensor:
        raise self._missing()

    def centered(self, mean: Tensor) -> Covariance:
        raise self._missing()

    def __matmul__(self, matrix: Tensor) -> Tensor:
        raise self._missing()

    def _missing(self) -> InputError:
        width, size = len(self._diagonal), len(self.product)
        return InputError(
            f"a covariance of shape {(width, width)} was summed only through the layer's "
            f"weight, as {(size, size)}; {WHOLE}"
        )


def _mean(covariance: Covariance, name: str) -> float:
    diagonal = covariance.diagonal()
    check_finite(diagonal, name)
    check_signal(diagonal, name)
    return float(diagonal.mean())
