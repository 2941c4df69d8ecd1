"""Plain truncated SVD: `min ||W - W_hat||_F`."""

from __future__ import annotations

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.metric import IdentityMetric, Metric
from spectrim.registry import NoOptions

REQUIRES: tuple[str, ...] = ()
REFERENCE = "Eckart and Young, 1936"


def metric(problem: LayerProblem, options: NoOptions) -> tuple[Metric, Metric]:
    return IdentityMetric(), IdentityMetric()
