"""AFM, LoRD's solver: keep the top principal directions of the output; the bias takes the mean.

    Cov(y) = U diag(l) U^T,   W_hat = U_r U_r^T W,   b_hat = b + (I - U_r U_r^T)(E[y] - b)

The outputs of an embedding table are its rows: `min sum_v p_v ||e_v - e_hat_v||^2` about
their mean `sum_v p_v e_v`, p_v the frequency of token v. A table that is the output embedding
too has two uses, weighed by what each loses of its own energy, with `output` as the second's
weight:

    sum_v p_v ||d_v||^2 / A  +  output * sum_v q_v d_v^T C_h d_v / B,     d_v = e_v - e_hat_v

A and B are the same sums for `E_hat` = the mean alone. `output` 0 is the paper's metric for
tied tables as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from spectrim.decompositions._problem import LayerProblem
from spectrim.decompositions._table import TableMetric, TableProblem, energy, product_of_traces
from spectrim.linalg.metric import CovarianceMetric, IdentityMetric
from spectrim.linalg.psd import check_covariance, check_finite, descending_eigh
from spectrim.linalg.truncated import Factors
from spectrim.registry import NoOptions

REQUIRES = ("output_covariance",)
TABLE_REQUIRES = ("counts", "head")
REFERENCE = "Yu and Wu, 2024, arXiv:2405.18146; Kaushal et al., 2023, arXiv:2309.14021"


@dataclass(frozen=True)
class TableOptions:
    """smoothing: added to every token's count. damping: relative to the mean diagonal."""

    smoothing: Annotated[float, Field(gt=0)] = 0.5
    output: Annotated[float, Field(ge=0)] = 1.0
    damping: Annotated[float, Field(ge=0)] = 1e-3


def decompose(problem: LayerProblem, options: NoOptions) -> Factors:
    moments = problem.statistic("output_covariance")
    check_finite(problem.weight, "weight")
    check_covariance(moments.covariance, f"output covariance of {problem.name}")
    weight = problem.weight.double()
    reachable = torch.linalg.qr(weight).Q  # (out, k): W x + b varies in no other direction
    values, vectors = descending_eigh(reachable.T @ moments.covariance @ reachable)
    basis = reachable @ vectors
    mean = moments.mean if problem.bias is None else moments.mean - problem.bias.double()
    return Factors(basis, basis.T @ weight, values.sqrt(), basis.T @ mean).balanced()


def table_metric(problem: TableProblem, options: TableOptions) -> TableMetric:
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
