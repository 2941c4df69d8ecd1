"""SVD-LLM: `min ||(W - W_hat) L_in||_F` with C_x = L_in L_in^T, the layer's output error.

Version 1 (Cholesky), version 2 (eigenvalues) and decompositions of sampled outputs have
this same optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.covariance import make_metric
from spectrim.linalg.metric import IdentityMetric, Metric

REQUIRES = ("input_covariance",)
REFERENCE = "Wang et al., 2024, arXiv:2403.07378"
REDUCES_TO_SVD = True
THROUGH_WEIGHT = True


@dataclass(frozen=True)
class Options:
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6


def metric(problem: LayerProblem, options: Options) -> tuple[Metric, Metric]:
    covariance = problem.statistic("input_covariance")
    name = f"input covariance of {problem.name}"
    return IdentityMetric(), make_metric(covariance, options.damping, name)
