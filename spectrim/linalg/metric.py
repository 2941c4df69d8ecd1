"""One side of a weighted approximation problem.

    min_{rank r} || L_out^T (W - W_hat) L_in ||_F,   C_out = L_out L_out^T,  C_in = L_in L_in^T

A metric provides the products with its factor L, so that the solver is the same for all kinds:

    whiten(M)   = L^T M
    unwhiten(M) = L^{-T} M
    color(M)    = L M
    gram(M)     = M^T C M, of M in float64 or float32, in float64
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from spectrim.errors import InputError, NumericalError
from spectrim.linalg.psd import add_damping, check_covariance, cholesky, mean_diagonal
from spectrim.linalg.symmetric_products import gram, symmetric_product, triangular_product

ROUNDING = 1e-13
"""Of the mean diagonal: less, and the factor's own error is larger."""


WHOLE = (
    "calibrate with calibration.wide_covariances=full in the recipe, or with "
    'CalibrationSettings(wide="full")'
)
"""Advice where a covariance was summed only through a weight."""


class Metric(ABC):
    """A metric of width n.

    statistic: the name of the layer's statistic whose C + ridge I this is, or "".
    """

    statistic: str = ""

    @abstractmethod
    def whiten(self, matrix: Tensor) -> Tensor: ...

    @abstractmethod
    def unwhiten(self, matrix: Tensor) -> Tensor: ...

    @abstractmethod
    def color(self, matrix: Tensor) -> Tensor: ...

    @abstractmethod
    def gram(self, matrix: Tensor) -> Tensor: ...

    @property
    def ridge(self) -> float:
        return 0.0


class IdentityMetric(Metric):
    def whiten(self, matrix: Tensor) -> Tensor:
        return matrix

    def unwhiten(self, matrix: Tensor) -> Tensor:
        return matrix

    def color(self, matrix: Tensor) -> Tensor:
        return matrix

    def gram(self, matrix: Tensor) -> Tensor:
        return gram(matrix.double())


class DiagonalMetric(Metric):
    """`L = diag(scale)`, scale of shape (n,), all positive. Raises NumericalError otherwise."""

    def __init__(self, scale: Tensor):
        self.scale = scale.double()
        if not bool((self.scale > 0).all()) or not bool(torch.isfinite(self.scale).all()):
            raise NumericalError(
                "a diagonal metric needs positive finite entries; "
                "some channel is always zero: raise the option `floor`"
            )

    def whiten(self, matrix: Tensor) -> Tensor:
        return self.scale[:, None] * matrix

    def unwhiten(self, matrix: Tensor) -> Tensor:
        return matrix / self.scale[:, None]

    def color(self, matrix: Tensor) -> Tensor:
        return self.scale[:, None] * matrix

    def gram(self, matrix: Tensor) -> Tensor:
        return gram(self.whiten(matrix))


class CovarianceMetric(Metric):
    """`C = covariance + damping * mean(diag) * I`, shape (n, n).

    The Cholesky factor is computed on first use: a solver that only needs `gram` never pays
    for it and works with a singular covariance. statistic: the name of the layer's statistic,
    if the covariance is one. Raises NumericalError for a covariance that is zero or not finite.
    """

    def __init__(
        self, covariance: Tensor, damping: float, name: str = "covariance", statistic: str = ""
    ):
        self.statistic = statistic
        self.damping = damping
        self.name = name
        check_covariance(covariance, name)
        self.covariance = add_damping(covariance.double(), damping)
        self._ridge = damping * mean_diagonal(covariance)

    @cached_property
    def factor(self) -> Tensor:
        return cholesky(self.covariance, 0.0, self.name)

    def whiten(self, matrix: Tensor) -> Tensor:
        return triangular_product(self.factor, matrix, transposed=True)

    def unwhiten(self, matrix: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor.T, matrix, upper=True)

    def color(self, matrix: Tensor) -> Tensor:
        return triangular_product(self.factor, matrix)

    def gram(self, matrix: Tensor) -> Tensor:
        matrix = matrix.double()
        return symmetric_product(matrix, self.covariance @ matrix)

    @property
    def ridge(self) -> float:
        """Return r in `C = covariance + r I`, including what the Cholesky factor had to add."""
        if "factor" not in vars(self):
            return self._ridge
        excess = self.factor.square().sum() - self.covariance.diagonal().sum()
        more = float(excess) / len(self.covariance)
        return self._ridge + (more if more > ROUNDING * mean_diagonal(self.covariance) else 0.0)


class ProjectedMetric(Metric):
    """`C + ridge I` of which only `product = V^T C V` (k, k) is known, V (n, k).

    It serves as the far side of a problem whose weight is V or its transpose, where only the
    Gram matrix of V is needed.
    """

    def __init__(self, product: Tensor, ridge: float, statistic: str = ""):
        self.product = product
        self.statistic = statistic
        self._ridge = ridge

    def gram(self, matrix: Tensor) -> Tensor:
        """Return V^T (C + r I) V; `matrix` has to be V.

        V^T V is computed in float32, since the ridge scales it down.
        """
        if matrix.shape[1] != len(self.product):
            raise self._misused()
        return gram(matrix.float()).double().mul_(self._ridge).add_(self.product)

    @property
    def ridge(self) -> float:
        return self._ridge

    def whiten(self, matrix: Tensor) -> Tensor:
        raise self._misused()

    def unwhiten(self, matrix: Tensor) -> Tensor:
        raise self._misused()

    def color(self, matrix: Tensor) -> Tensor:
        raise self._misused()

    def _misused(self) -> InputError:
        return InputError(
            f"a covariance seen through a weight of smaller side {len(self.product)} answers "
            f"for that weight alone, as the metric of its wider side; {WHOLE}"
        )


class StackedMetric(Metric):
    """`L = diag(L_1, ..., L_n)` for stacked matrices with `sizes` rows each."""

    def __init__(self, parts: Sequence[Metric], sizes: Sequence[int]):
        self.parts = list(parts)
        self.sizes = list(sizes)

    def whiten(self, matrix: Tensor) -> Tensor:
        return torch.cat([part.whiten(rows) for part, rows in self._pairs(matrix)])

    def unwhiten(self, matrix: Tensor) -> Tensor:
        return torch.cat([part.unwhiten(rows) for part, rows in self._pairs(matrix)])

    def color(self, matrix: Tensor) -> Tensor:
        return torch.cat([part.color(rows) for part, rows in self._pairs(matrix)])

    def gram(self, matrix: Tensor) -> Tensor:
        first, *others = (part.gram(rows) for part, rows in self._pairs(matrix))
        for other in others:
            first += other
        return first

    def _pairs(self, matrix: Tensor) -> Iterator[tuple[Metric, Tensor]]:
        return zip(self.parts, matrix.split(self.sizes), strict=True)
