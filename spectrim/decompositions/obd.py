"""OBD-LLM: `min ||L_out^T (W - W_hat) L_in||_F`, bidirectional whitening.

The Hessian of the loss in W is approximated by C_x (x) C_g (K-FAC), so half the weighted
error is the predicted loss increase per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.metric import CovarianceMetric, Metric

REQUIRES = ("input_covariance", "gradient_covariance")
REFERENCE = "Li et al., 2026, arXiv:2604.00821"


@dataclass(frozen=True)
class Options:
    """Damping of both covariances, relative to their mean diagonal."""

    damping: float = 1e-3


def metric(problem: LayerProblem, options: Options) -> tuple[Metric, Metric]:
    out_covariance = problem.statistic("gradient_covariance")
    in_covariance = problem.statistic("input_covariance")
    return (
        CovarianceMetric(
            out_covariance, options.damping, f"gradient covariance of {problem.name}"
        ),
        CovarianceMetric(in_covariance, options.damping, f"input covariance of {problem.name}"),
    )
