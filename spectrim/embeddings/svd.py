"""Plain SVD of the table: min ||E - E_hat||_F, every token and every direction alike."""

from __future__ import annotations

import torch

from spectrim.embeddings._problem import TableMetric, TableProblem
from spectrim.linalg.metric import IdentityMetric
from spectrim.registry import NoOptions

REQUIRES: tuple[str, ...] = ()
REFERENCE = "Eckart and Young, 1936"


def metric(problem: TableProblem, options: NoOptions) -> TableMetric:
    rows = torch.ones(len(problem.table), dtype=torch.float64)
    return TableMetric(rows, IdentityMetric(), centered=False)
