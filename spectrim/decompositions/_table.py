"""Embedding tables as products: linear layers on one-hot inputs, with a diagonal metric.

A table E (V, d) becomes E_hat = 1 mean^T + coefficients basis, (V, r) and (r, d), so that

    sum_v w_v (e_v - e_hat_v)^T M (e_v - e_hat_v)

is least: in closed form, as for other layers, with diag(w) on one side and M on the other. To
second order in the errors d_v = e_v - e_hat_v, a table has two uses, per token,

    lookup:  1/2 sum_v p_v d_v^T C_g d_v     p_v frequency of token v
    output:  1/2 sum_v q_v d_v^T C_h d_v     (tied tables only)

with the statistics of `TableStatistics`. The first is the quadratic loss of a linear layer with
input covariance diag(p), the second that of the logits z = E h. Each is a Kronecker product
diag(w) (x) M; their sum is not, and `product_of_traces` stands for it.

A method that factors tables too declares beside its `metric` or `decompose`

    TABLE_REQUIRES                          of "counts", "gradients", "head" (for tied tables)
    TableOptions                            optional, a frozen dataclass
    table_metric(problem, options) -> TableMetric
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.layers import FactoredEmbedding
from spectrim.linalg.metric import DiagonalMetric, Metric
from spectrim.linalg.truncated import Factors, weighted_svd
from spectrim.registry import Registry
from spectrim.statistics import TableStatistics

TABLE_METHODS = Registry(
    "embedding method", "spectrim.decompositions", "table_metric", "TableOptions"
)
"""The methods that factor embedding tables."""

Term = tuple[Tensor, Tensor]
"""Row weights (V,) and a covariance (d, d)."""


@dataclass(frozen=True)
class TableProblem:
    """An embedding table (V, d), float64; tied: it is the output embedding too."""

    table: Tensor
    tied: bool
    statistics: TableStatistics | None

    @property
    def known(self) -> TableStatistics:
        assert self.statistics is not None, "a method that reads statistics declares them"
        return self.statistics

    def frequencies(self, smoothing: float) -> Tensor:
        """Return p (V,) = (counts + smoothing) / (N + smoothing V), all positive."""
        counts = self.known.counts.double() + smoothing
        return counts / counts.sum()

    @property
    def lookup_gradients(self) -> Tensor:
        assert self.known.gradients is not None, "summed where TABLE_REQUIRES names it"
        return self.known.gradients

    @property
    def output(self) -> Term:
        """Return (q, C_h), for tied tables only."""
        fisher, inputs = self.known.head_fisher, self.known.head_inputs
        assert fisher is not None, "summed where TABLE_REQUIRES names it"
        assert inputs is not None
        return fisher, inputs


@dataclass(frozen=True)
class TableMetric:
    """min sum_v rows_v d_v^T M d_v; with `centered` the weighted mean row is stored exactly."""

    rows: Tensor
    width: Metric
    centered: bool

    def __post_init__(self) -> None:
        if not bool((self.rows > 0).all()):
            raise InputError(
                "every row of a table needs a positive weight; set `smoothing` above 0"
            )


@dataclass(frozen=True)
class FactoredTable:
    """The factors of a table minus its mean row (d,), None if the metric has none."""

    factors: Factors
    mean: Tensor | None

    def module(self, rank: int) -> FactoredEmbedding:
        return FactoredEmbedding.from_factors(*self.factors.truncated(rank), self.mean)

    def weight(self, rank: int) -> Tensor:
        """Return the table (V, d) at `rank`."""
        product = self.factors.weight(rank)
        return product if self.mean is None else product + self.mean

    def lost(self, rank: int) -> float:
        """Return the weighted error at `rank` as a fraction of the error at rank 0."""
        energies = self.factors.spectrum.square()
        return float(energies[rank:].sum() / energies.sum())


def decompose_table(method: str, problem: TableProblem, options: Any) -> FactoredTable:
    """Factor a table at every rank by the named method.

    Raises UnknownNameError, and NumericalError for values that are not finite.
    """
    metric = TABLE_METHODS.get(method).table_metric(problem, options)
    return solve_table(problem.table, metric)


def solve_table(table: Tensor, metric: TableMetric) -> FactoredTable:
    """Factor a table optimally at every rank; the weighted error is `sum_{i>r} s_i^2`.

    The optimal mean is the weighted mean of the rows, whatever M is.
    """
    table = table.double()
    mean = weighted_mean(metric.rows, table) if metric.centered else None
    centered = table if mean is None else table - mean
    factors = weighted_svd(centered, DiagonalMetric(metric.rows.sqrt()), metric.width)
    return FactoredTable(factors, mean)


def energy(term: Term, table: Tensor) -> float:
    """Return sum_v w_v (e_v - mean)^T M (e_v - mean), mean the row weighted by w."""
    weights, covariance = term
    centered = table - weighted_mean(weights, table)
    return float((weights[:, None] * centered * (centered @ covariance)).sum())


def weighted_mean(weights: Tensor, table: Tensor) -> Tensor:
    return weights @ table / weights.sum()


def product_of_traces(terms: Sequence[Term]) -> Term:
    """Return w (x) M in place of sum_k diag(w_k) (x) M_k, from its two partial traces:

        w = sum_k tr(M_k) w_k,   M = sum_k (sum_v w_kv) M_k / sum_v w_v

    of all products the nearest in relative entropy; exact when the w_k or the M_k are alike.
    """
    rows = torch.stack([weights for weights, _ in terms])
    matrices = torch.stack([covariance for _, covariance in terms])
    traces = matrices.diagonal(dim1=1, dim2=2).sum(1)
    weights = traces @ rows
    return weights, torch.einsum("k,kij->ij", rows.sum(1), matrices) / weights.sum()


def table_rank(shape: tuple[int, int], budget: float, multiple: int = 1) -> int:
    """Return the largest rank that stores at most `budget` of the table.

    Raises:
        InputError: the budget is below rank `multiple`.
    """
    count, width = shape
    rank = int(budget * count * width / FactoredEmbedding.cost(count, width, 1) + 1e-9)
    rank = min(rank, count, width) // multiple * multiple
    if rank < 1:
        least = FactoredEmbedding.cost(count, width, multiple) / (count * width)
        raise InputError(
            f"embeddings.budget {budget} is below rank {multiple} of the table "
            f"({count} x {width}), which takes {least:.4f}"
        )
    return rank
