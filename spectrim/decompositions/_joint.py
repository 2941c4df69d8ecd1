"""Several layers of equal input width on one basis, as one layer of stacked rows.

    min_{rank r} sum_k || L_out_k^T (W_k - left_k right) L_in ||_F^2,   L_in of pooled inputs

is the problem of the weight [W_1; ...; W_n] in the metric diag(L_out_1, ..., L_out_n), so its
factors, their costs r (in + sum_k out_k) and their cuts are those of a layer of that shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectrim.decompositions._problem import DECOMPOSITIONS, LayerProblem
from spectrim.errors import InputError
from spectrim.linalg.metric import Metric, StackedMetric
from spectrim.linalg.truncated import Factors, weighted_svd


def decompose_group(method: str, problems: Sequence[LayerProblem], options: Any) -> Factors:
    """Return the factors of the stacked weights, in the order of `problems`.

    The problems' statistics share pooled inputs. Raises InputError for a method that cannot
    share a basis, NumericalError.
    """
    weight = torch.cat([problem.weight for problem in problems])
    return weighted_svd(weight, *group_metrics(method, problems, options))


def whitened(method: str, problems: Sequence[LayerProblem], options: Any) -> list[Tensor]:
    """Return `L_out_k^T W_k L_in` (out_k, in) of each problem, float64."""
    outer, inner = group_metrics(method, problems, options)
    return [
        inner.whiten(part.whiten(problem.weight.double()).T).T
        for part, problem in zip(outer.parts, problems, strict=True)
    ]


def group_metrics(
    method: str, problems: Sequence[LayerProblem], options: Any
) -> tuple[StackedMetric, Metric]:
    module = DECOMPOSITIONS.get(method)
    if not hasattr(module, "metric"):
        raise InputError(
            f"layers cannot share a basis with the method '{method}', which is not a pair of "
            "metrics; use one like obd or svd_llm, or sharing.rule none"
        )
    outer, inner = zip(*(module.metric(problem, options) for problem in problems), strict=True)
    if not all(_equal(inner[0], other) for other in inner[1:]):
        raise InputError(
            f"layers cannot share a basis with the method '{method}', which measures inputs "
            "differently for each layer; use one like obd or svd_llm, or sharing.rule none"
        )
    return StackedMetric(outer, [problem.weight.shape[0] for problem in problems]), inner[0]


def _equal(one: Metric, other: Metric) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, StackedMetric) and isinstance(other, StackedMetric):
        return all(_equal(*pair) for pair in zip(one.parts, other.parts, strict=True))
    tensors = [value for value in vars(one).values() if isinstance(value, Tensor)]
    others = [value for value in vars(other).values() if isinstance(value, Tensor)]
    return all(torch.equal(*pair) for pair in zip(tensors, others, strict=True))
