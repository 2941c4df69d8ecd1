"""One layer to decompose, and the dispatch to a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectrim.calibration import LayerStatistics
from spectrim.linalg.truncated import Factors, weighted_svd
from spectrim.registry import Registry

DECOMPOSITIONS = Registry("method", "spectrim.decompositions")


@dataclass(frozen=True)
class LayerProblem:
    """weight (out, in), bias (out,) or None, statistics of the layer (None when not needed)."""

    name: str
    weight: Tensor
    bias: Tensor | None
    statistics: LayerStatistics | None

    def statistic(self, name: str) -> Any:
        assert self.statistics is not None, "a method that reads statistics declares REQUIRES"
        return self.statistics[name]


def decompose_layer(method: str, problem: LayerProblem, options: Any) -> Factors:
    """Factors at full rank by the named method. Raises UnknownNameError, NumericalError."""
    module = DECOMPOSITIONS.get(method)
    if hasattr(module, "decompose"):
        return module.decompose(problem, options)
    return weighted_svd(problem.weight, *module.metric(problem, options))
