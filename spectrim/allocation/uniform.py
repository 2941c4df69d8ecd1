"""The same kept fraction for every layer: the largest rank whose cost fits it.

    r_l = max { r : cost_l(r) <= budget dense_l },   cost_l(r) = r (out + in) for plain factors

Costs are those of the layer type, in stored weights, or in bytes where factors are quantized.
If even the smallest rank of some layer exceeds the fraction (rank multiples), all others get
a smaller one, found by bisection, so that the sum stays within the budget.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spectrim.allocation._request import AllocationRequest, RankChoices
from spectrim.registry import NoOptions

REQUIRES: tuple[str, ...] = ()
REFERENCE = "the common choice of all low-rank methods"
_BISECTIONS = 40


def allocate(request: AllocationRequest, options: NoOptions) -> dict[str, int | None]:
    """Return the ranks; if some layer's smallest rank exceeds the fraction, the others
    shrink.
    """
    choices = [request.choices(curve) for curve in request.curves]
    dense = np.array([curve.dense_cost for curve in request.curves])
    picked = _fitting(choices, dense, request.budget)
    low, high = 0.0, request.budget
    if _cost(choices, picked) > request.weights:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fits = _cost(choices, _fitting(choices, dense, middle)) <= request.weights
            low, high = (middle, high) if fits else (low, middle)
        picked = _fitting(choices, dense, low)
    return {
        curve.name: int(choice.ranks[index]) or None
        for curve, choice, index in zip(request.curves, choices, picked, strict=True)
    }


def _fitting(
    choices: list[RankChoices], dense: NDArray[np.int64], fraction: float
) -> list[int]:
    """Return per layer the most expensive choice within the fraction, else its cheapest."""
    allowed = (fraction * dense + 1e-9).astype(np.int64)
    return [
        max(int(np.searchsorted(choice.costs, most, side="right")) - 1, 0)
        for choice, most in zip(choices, allowed, strict=True)
    ]


def _cost(choices: list[RankChoices], picked: list[int]) -> int:
    return sum(int(c.costs[i]) for c, i in zip(choices, picked, strict=True))
