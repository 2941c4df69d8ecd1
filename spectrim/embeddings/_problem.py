"""One table to factorise: what is known of its use, and the metric a method makes of it.

A table is used in two ways. To second order in the errors d_v = e_v - e_hat_v, per token,

    lookup:  1/2 sum_v p_v d_v^T C_g d_v     p_v frequency of token v,
                                             C_g = E[g g^T] at the output of the lookup
    output:  1/2 sum_v q_v d_v^T C_h d_v     q_v = E[pi_v (1 - pi_v)], pi the predictions,
             (tied tables only)              C_h = E[h h^T] of the last hidden state

The first is the quadratic loss of a linear layer on one-hot inputs (input covariance diag(p));
the second that of the logits z = E h, with the diagonal of the softmax's Fisher matrix. Each
is a Kronecker product diag(w) (x) M; their sum is not, and `product_of_traces` stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.metric import Metric

Term = tuple[Tensor, Tensor]
"""Row weights (V,) and a covariance (d, d)."""


@dataclass(frozen=True)
class TableStatistics:
    """counts (V,) of the tokens; per token C_g (d, d), C_h (d, d) and q (V,), or None."""

    counts: Tensor
    gradients: Tensor | None = None
    head_inputs: Tensor | None = None
    head_fisher: Tensor | None = None


@dataclass(frozen=True)
class TableProblem:
    """table (V, d), float64; tied: it is the output embedding too."""

    table: Tensor
    tied: bool
    statistics: TableStatistics | None

    @property
    def known(self) -> TableStatistics:
        assert self.statistics is not None, "a method that reads statistics declares REQUIRES"
        return self.statistics

    def frequencies(self, smoothing: float) -> Tensor:
        """p (V,) = (counts + smoothing) / (N + smoothing V), all positive."""
        counts = self.known.counts.double() + smoothing
        return counts / counts.sum()

    @property
    def lookup_gradients(self) -> Tensor:
        assert self.known.gradients is not None, "gathered where REQUIRES names it"
        return self.known.gradients

    @property
    def output(self) -> Term:
        """(q, C_h). Only for tied tables."""
        fisher, inputs = self.known.head_fisher, self.known.head_inputs
        assert fisher is not None, "gathered where REQUIRES names it"
        assert inputs is not None
        return fisher, inputs


@dataclass(frozen=True)
class TableMetric:
    """min sum_v rows_v d_v^T M d_v; centred: the weighted mean row is kept apart, exactly."""

    rows: Tensor
    width: Metric
    centered: bool

    def __post_init__(self) -> None:
        if not bool((self.rows > 0).all()):
            raise InputError(
                "every row of a table needs a positive weight; set `smoothing` above 0"
            )


def energy(term: Term, table: Tensor) -> float:
    """sum_v w_v (e_v - mean)^T M (e_v - mean), mean the row weighted by w."""
    weights, covariance = term
    centered = table - weighted_mean(weights, table)
    return float((weights[:, None] * centered * (centered @ covariance)).sum())


def weighted_mean(weights: Tensor, table: Tensor) -> Tensor:
    return weights @ table / weights.sum()


def product_of_traces(terms: Sequence[Term]) -> Term:
    """w (x) M in the place of sum_k diag(w_k) (x) M_k: its two partial traces,

        w = sum_k tr(M_k) w_k,   M = sum_k (sum_v w_kv) M_k / sum_v w_v

    of all products the nearest in relative entropy; exact when the w_k or the M_k are alike.
    """
    rows = torch.stack([weights for weights, _ in terms])
    matrices = torch.stack([covariance for _, covariance in terms])
    traces = matrices.diagonal(dim1=1, dim2=2).sum(1)
    weights = traces @ rows
    return weights, torch.einsum("k,kij->ij", rows.sum(1), matrices) / weights.sum()
