"""OBD-LLM: `min ||L_out^T (W - W_hat) L_in||_F`, bidirectional whitening.

    C_g = E[g g^T] = L_out L_out^T (out, out),   C_x = E[x x^T] = L_in L_in^T (in, in)
    left = L_out^{-T} U_r,   right = U_r^T M,   M = L_out^T W,   U the eigenvectors of M C_x M^T

The Hessian of the loss in W is approximated by `C_x (x) C_g` (K-FAC), so half the weighted
error is the predicted loss increase per token: half the sum of the squared singular values of
`L_out^T W L_in` that are cut. Both covariances are damped; no inverse of C_x is formed.
A layer whose gradients are all zero has no such metric and stays dense.

The inputs of an embedding table are one-hot, `C_x = diag(p)`; if the table is the output
embedding too, the quadratic loss of the logits is added, also in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from spectrim.decompositions._problem import LayerProblem
from spectrim.decompositions._table import TableMetric, TableProblem, product_of_traces
from spectrim.linalg.covariance import make_metric
from spectrim.linalg.metric import CovarianceMetric, Metric

REQUIRES = ("input_covariance", "gradient_covariance")
TABLE_REQUIRES = ("counts", "gradients", "head")
REFERENCE = "Li et al., 2026, arXiv:2604.00821"
REDUCES_TO_SVD = True
THROUGH_WEIGHT = True


@dataclass(frozen=True)
class Options:
    """Damping of both covariances, relative to their mean diagonal; gradient_damping takes its
    place for C_g, whose estimate from few sequences is the noisier one (None: the same).
    """

    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    gradient_damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True)
class TableOptions:
    """smoothing: added to every token's count. damping: relative to the mean diagonal."""

    smoothing: Annotated[float, Field(gt=0)] = 0.5
    damping: Annotated[float, Field(ge=0)] = 1e-3


def metric(problem: LayerProblem, options: Options) -> tuple[Metric, Metric]:
    own = options.gradient_damping
    return (
        _damped(problem, "gradient_covariance", options.damping if own is None else own),
        _damped(problem, "input_covariance", options.damping),
    )


def table_metric(problem: TableProblem, options: TableOptions) -> TableMetric:
    terms = [(problem.frequencies(options.smoothing), problem.lookup_gradients)]
    if problem.tied:
        terms.append(problem.output)
    rows, matrix = product_of_traces(terms)
    return TableMetric(rows, CovarianceMetric(matrix, options.damping, "table"), centered=True)


def _damped(problem: LayerProblem, statistic: str, damping: float) -> Metric:
    name = f"{statistic.replace('_', ' ')} of {problem.name}"
    return make_metric(problem.statistic(statistic), damping, name, statistic)
