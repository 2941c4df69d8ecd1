"""Decompositions: a weight as rank-one terms, most important first. One file per method.

A module declares `REQUIRES` (statistics), `REFERENCE`, optionally a frozen dataclass
`Options`, and exactly one of

    metric(problem, options) -> (out_metric, in_metric)     the shared solver does the rest
    decompose(problem, options) -> Factors                  for methods that are no metric pair

A metric pair that makes its covariances by `make_metric` and reads nothing else of them may
declare `THROUGH_WEIGHT = True`: of the covariance of a layer's wider side the solver asks only
what the weight makes of it, so that calibration sums just that. A method that factors embedding
tables too declares what `_table` says. `REDUCES_TO_SVD = True` lets the contract tests hold
that identity statistics give the plain SVD.
"""

from __future__ import annotations

from spectrim.decompositions._joint import decompose_group, whitened
from spectrim.decompositions._problem import DECOMPOSITIONS, decompose_layer
from spectrim.decompositions._table import (
    TABLE_METHODS,
    FactoredTable,
    TableMetric,
    TableProblem,
    decompose_table,
    solve_table,
    table_rank,
)

__all__ = [
    "DECOMPOSITIONS",
    "TABLE_METHODS",
    "FactoredTable",
    "TableMetric",
    "TableProblem",
    "decompose_group",
    "decompose_layer",
    "decompose_table",
    "solve_table",
    "table_rank",
    "whitened",
]
