"""One layer to decompose, and the dispatch to a method."""

from __future__ import annotations

from typing import Any

from spectrim.linalg.truncated import Factors, weighted_svd
from spectrim.registry import Registry
from spectrim.statistics import LayerProblem

DECOMPOSITIONS = Registry("method", "spectrim.decompositions")


def decompose_layer(method: str, problem: LayerProblem, options: Any) -> Factors:
    """Return the factors at full rank by a method. Raises UnknownNameError, NumericalError."""
    module = DECOMPOSITIONS.get(method)
    if hasattr(module, "decompose"):
        return module.decompose(problem, options)
    return weighted_svd(problem.weight, *module.metric(problem, options))
