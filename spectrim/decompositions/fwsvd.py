"""FWSVD: `min ||diag(sqrt(F)) (W - W_hat)||_F` with F the row sums of the diagonal Fisher.

`F_i = E[ sum_j (dL/dW_ij)^2 ]`, (out,): the cost of an error in row i. One number per row keeps
the weighted problem an SVD. Needs a backward pass and, for each layer, the gradient of its
weight once per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.metric import DiagonalMetric, IdentityMetric, Metric

REQUIRES = ("row_fisher",)
REFERENCE = "Hsu et al., 2022, arXiv:2207.00112"
REDUCES_TO_SVD = True


@dataclass(frozen=True)
class Options:
    """Options of FWSVD; `floor` is the smallest scale, relative to the mean, for dead rows."""

    floor: float = 1e-6


def metric(problem: LayerProblem, options: Options) -> tuple[Metric, Metric]:
    scale = problem.statistic("row_fisher").sqrt()
    return DiagonalMetric(scale.clamp_min(options.floor * scale.mean())), IdentityMetric()
