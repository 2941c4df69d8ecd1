"""One layer's factors from the sums of its inputs.

    min_{rank r}  E || L_out^T (W (x' + mix (x - x')) - W_hat x') ||^2 + damping term

x' the rewritten prefix's inputs, x the original's; the solution is the shared solver's with
`P = W (C + mix D)`, C = E[x' x'^T] damped, D = E[(x - x') x'^T]. The damping pulls W_hat
toward W: without a shift, or with mix 0, the regression `P C^{-1}` is W itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from spectrim.layers import FactoredLinear
from spectrim.linalg.covariance import dense
from spectrim.linalg.metric import CovarianceMetric, IdentityMetric, Metric
from spectrim.linalg.regression import regression, weighted_square
from spectrim.linalg.truncated import weighted_svd
from spectrim.models.linear import get_bias, get_weight
from spectrim.refinement._sequential.layer_inputs import Sums
from spectrim.statistics import Calibration


@dataclass(frozen=True)
class Problem:
    """W (out, in) float64, D (in, in) or None, the metrics, and the rank to keep."""

    weight: Tensor
    shift: Tensor | None
    out_metric: Metric
    in_metric: CovarianceMetric
    rank: int

    def product(self, mix: float) -> Tensor:
        """Return P (out, in) of the target `W (x' + mix (x - x'))`."""
        covariance = self.in_metric.covariance
        if self.shift is not None and mix:
            covariance = covariance + mix * self.shift
        return self.weight @ covariance


TargetMix = Callable[[Problem], float]
"""Share of the original inputs' output in the target, layer by layer."""


@dataclass(frozen=True)
class Fit:
    """left (out, r), right (r, in); the objective with the former factors and with these,
    relative to the regression's own size."""

    left: Tensor
    right: Tensor
    before: float
    after: float


def fit(problem: Problem, mix: float, present: Tensor) -> Fit:
    """Return the optimum of rank `problem.rank`; `present` (out, in) is the present weight."""
    metrics = problem.out_metric, problem.in_metric
    target = regression(problem.product(mix), problem.in_metric)
    left, right = weighted_svd(target, *metrics).truncated(problem.rank)
    size = weighted_square(target, *metrics)
    before = weighted_square(target - present, *metrics) / size
    after = weighted_square(target - left @ right, *metrics) / size
    return Fit(left, right, before, after)


def out_metric(calibration: Calibration | None, name: str, damping: float) -> Metric | None:
    """Return chol(C_g) of the calibration, the identity without one; None where C_g is zero."""
    if calibration is None:
        return IdentityMetric()
    covariance = dense(calibration.layer(name)["gradient_covariance"]).cpu()
    if not bool(covariance.any()):
        return None
    return CovarianceMetric(covariance, damping, f"gradient covariance of {name}")


def in_metric(sums: Sums, name: str, damping: float) -> CovarianceMetric:
    assert sums.covariance is not None
    covariance = sums.covariance.cpu() / sums.count
    return CovarianceMetric(covariance, damping, f"covariance of the inputs of {name}")


def shift_of(sums: Sums) -> Tensor | None:
    return None if sums.shift is None else sums.shift.cpu() / sums.count


def dense_form(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight (out, in) and bias (out,) of a layer of any kind, float64, on the CPU."""
    if isinstance(layer, FactoredLinear):
        weight, bias = layer.dense()
    else:
        weight, bias = get_weight(layer).detach().double(), get_bias(layer)
    return weight.cpu(), None if bias is None else bias.double().cpu()


def rebuild(layer: FactoredLinear, fitted: Fit, bias: Tensor | None) -> FactoredLinear:
    """Return the same kind of layer with the new factors and the original's bias (out,).

    The bias is zero where the layer stores one and the original does not.
    """
    _, present = layer.dense()
    if present is not None and bias is None:
        bias = present.cpu() * 0
    kept = None if present is None else bias
    return type(layer).from_factors(fitted.left, fitted.right, kept)
