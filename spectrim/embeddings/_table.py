"""The factors of a table at every rank, in a method's metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.embeddings._modules import FactoredEmbedding
from spectrim.embeddings._problem import TableMetric, weighted_mean
from spectrim.errors import InputError
from spectrim.linalg.metric import DiagonalMetric
from spectrim.linalg.truncated import Factors, weighted_svd


@dataclass(frozen=True)
class Table:
    """factors of the table less its mean row (d,), which is None when the metric has none."""

    factors: Factors
    mean: Tensor | None

    def module(self, rank: int) -> FactoredEmbedding:
        return FactoredEmbedding.from_factors(*self.factors.truncated(rank), self.mean)

    def weight(self, rank: int) -> Tensor:
        """The table (V, d) at `rank`."""
        product = self.factors.weight(rank)
        return product if self.mean is None else product + self.mean

    def lost(self, rank: int) -> float:
        """The weighted error at `rank` as a fraction of the error at rank 0."""
        energies = self.factors.spectrum.square()
        return float(energies[rank:].sum() / energies.sum())


def factorize_table(table: Tensor, metric: TableMetric) -> Table:
    """Optimal at every rank in the metric; the weighted error is `sum_{i>r} s_i^2`.

    The optimal mean is the weighted mean of the rows, whatever M is. Raises NumericalError for
    values that are not finite.
    """
    table = table.double()
    mean = weighted_mean(metric.rows, table) if metric.centered else None
    centered = table if mean is None else table - mean
    return Table(weighted_svd(centered, DiagonalMetric(metric.rows.sqrt()), metric.width), mean)


def table_rank(shape: tuple[int, int], budget: float, multiple: int = 1) -> int:
    """The largest rank that stores at most `budget` of the table. Raises InputError below 1."""
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


def weighted_error(table: Tensor, other: Tensor, rows: Tensor, matrix: Tensor) -> float:
    """sum_v rows_v d_v^T M d_v with d = table - other, both (V, d)."""
    difference = (table - other).to(torch.float64)
    return float((rows[:, None] * difference * (difference @ matrix)).sum())
