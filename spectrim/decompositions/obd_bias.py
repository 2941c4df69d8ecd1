"""OBD whose bias absorbs the mean input, so that only deviations from it are approximated.

    y_hat = W_hat x + b + (W - W_hat) E[x],   min ||L_out^T (W - W_hat) L_in||_F,
    L_in L_in^T = C_x - E[x] E[x]^T

Costs one bias per layer (out numbers) where the layer had none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.covariance import centered, make_metric
from spectrim.linalg.truncated import Factors, weighted_svd

REQUIRES = ("input_covariance", "gradient_covariance", "input_mean")
REFERENCE = "Li et al., 2026, arXiv:2604.00821, with the bias of Yu and Wu, arXiv:2405.18146"


@dataclass(frozen=True)
class Options:
    """Damping of both covariances, relative to their mean diagonal."""

    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3


def decompose(problem: LayerProblem, options: Options) -> Factors:
    mean = problem.statistic("input_mean")
    inputs = centered(problem.statistic("input_covariance"), mean)
    gradients = problem.statistic("gradient_covariance")
    factors = weighted_svd(
        problem.weight,
        make_metric(gradients, options.damping, f"gradient covariance of {problem.name}"),
        make_metric(inputs, options.damping, f"centered covariance of {problem.name}"),
    )
    return replace(factors, bias_shift=factors.right.double() @ mean)
