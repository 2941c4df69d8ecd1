"""Plain truncated SVD: `min ||W - W_hat||_F`.

`W = U diag(s) V^T`, (out, in); `left = U_r sqrt(S_r)` (out, r), `right = sqrt(S_r) V_r^T`
(r, in), up to how the scale is shared. Needs no data: all directions of input and output have
equal weight.
"""

from __future__ import annotations

import torch

from spectrim.decompositions._problem import LayerProblem
from spectrim.decompositions._table import TableMetric, TableProblem
from spectrim.linalg.metric import IdentityMetric, Metric
from spectrim.registry import NoOptions

REQUIRES: tuple[str, ...] = ()
TABLE_REQUIRES: tuple[str, ...] = ()
REFERENCE = "Eckart and Young, 1936"
REDUCES_TO_SVD = True


def metric(problem: LayerProblem, options: NoOptions) -> tuple[Metric, Metric]:
    return IdentityMetric(), IdentityMetric()


def table_metric(problem: TableProblem, options: NoOptions) -> TableMetric:
    rows = torch.ones(len(problem.table), dtype=torch.float64)
    return TableMetric(rows, IdentityMetric(), centered=False)
