"""AFM: principal directions of looked-up rows, min sum_v p_v ||e_v - e_hat_v||^2 about a mean.

p_v is the frequency of token v in the calibration data, the mean is sum_v p_v e_v. A tied table
is the output embedding too; the two roles are then weighed by what each loses of its own
energy, with `output` as the second one's weight:

    sum_v p_v ||d_v||^2 / A  +  output * sum_v q_v d_v^T C_h d_v / B,     d_v = e_v - e_hat_v

A and B are the same sums for E_hat = the mean alone, q_v = E[pi_v (1 - pi_v)], C_h = E[h h^T]
(see `_problem.py`); the product of the sum's partial traces stands for it. `output` 0 is the
paper's metric for tied tables as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from spectrim.embeddings._problem import TableMetric, TableProblem, energy, product_of_traces
from spectrim.linalg.metric import CovarianceMetric, IdentityMetric

REQUIRES = ("counts", "head")
REFERENCE = "Yu and Wu, 2024, arXiv:2405.18146"


@dataclass(frozen=True)
class Options:
    """smoothing: added to every token's count. damping: relative to the mean diagonal."""

    smoothing: Annotated[float, Field(gt=0)] = 0.5
    output: Annotated[float, Field(ge=0)] = 1.0
    damping: Annotated[float, Field(ge=0)] = 1e-3


def metric(problem: TableProblem, options: Options) -> TableMetric:
    frequencies = problem.frequencies(options.smoothing)
    if not problem.tied or options.output == 0:
        return TableMetric(frequencies, IdentityMetric(), centered=True)
    table = problem.table
    lookup = frequencies, torch.eye(table.shape[1], dtype=torch.float64)
    fisher, inputs = problem.output
    rows, matrix = product_of_traces(
        [
            (lookup[0] / energy(lookup, table), lookup[1]),
            (options.output * fisher / energy((fisher, inputs), table), inputs),
        ]
    )
    return TableMetric(rows, CovarianceMetric(matrix, options.damping, "table"), centered=True)
