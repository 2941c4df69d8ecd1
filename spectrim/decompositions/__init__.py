"""Decompositions: a weight as rank-one terms, most important first. One file per method.

A module declares `REQUIRES` (statistics), `REFERENCE`, optionally a frozen dataclass
`Options`, and exactly one of

    metric(problem, options) -> (out_metric, in_metric)     solved by the shared solver
    decompose(problem, options) -> Factors                  for methods that are no metric pair

A metric pair that builds its covariances with `make_metric` and reads nothing else of them may
declare `THROUGH_WEIGHT = True`: the solver needs the covariance of a layer's wider side only in
products with the weight, so calibration sums just those. `_table` describes what a method
declares to factor embedding tables too. With `REDUCES_TO_SVD = True` the contract tests check
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
