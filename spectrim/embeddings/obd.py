"""OBD of a table: min 1/2 sum_v (p_v d_v^T C_g d_v + q_v d_v^T C_h d_v), the second when tied.

The quadratic loss of the lookup, with the covariance of its gradients, and for a tied table
that of the logits; both are in nats, so they add without a weight. The product of the sum's
partial traces stands for it (see `_problem.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from spectrim.embeddings._problem import TableMetric, TableProblem, product_of_traces
from spectrim.linalg.metric import CovarianceMetric

REQUIRES = ("counts", "gradients", "head")
REFERENCE = "Li et al., 2026, arXiv:2604.00821, on one-hot inputs"


@dataclass(frozen=True)
class Options:
    """smoothing: added to every token's count. damping: relative to the mean diagonal."""

    smoothing: Annotated[float, Field(gt=0)] = 0.5
    damping: Annotated[float, Field(ge=0)] = 1e-3


def metric(problem: TableProblem, options: Options) -> TableMetric:
    terms = [(problem.frequencies(options.smoothing), problem.lookup_gradients)]
    if problem.tied:
        terms.append(problem.output)
    rows, matrix = product_of_traces(terms)
    return TableMetric(rows, CovarianceMetric(matrix, options.damping, "table"), centered=True)
