"""ASVD's search: the smallest size of each matrix whose own loss stays below one threshold.

    size_l(t) = min { ratio : loss_l(ratio) <= t },   t the least that meets the budget

Losses are those of one matrix at one ratio at a time, everything else unchanged; a matrix
with no such ratio stays dense. Cost falls as t grows, so t is bisected over the losses
themselves; what the grid leaves of the budget stays unspent, as in the paper. Where even the
smallest ratios do not meet the budget, the smallest rank joins the grid.

The paper measures a perplexity for every matrix and ratio. Here the losses are the layers'
curves: with `probe.per_layer` they pass through measured divergences at two ranks of each
layer, interpolated between and beyond; without, they are predicted and nothing is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from spectrim.allocation._request import AllocationRequest, RankChoices

REQUIRES = ("input_covariance", "gradient_covariance")
REFERENCE = "Yuan et al., 2023, arXiv:2312.05821"


@dataclass(frozen=True)
class Options:
    """Options of the search; ratios: the kept fractions of a matrix to try, ascending."""

    ratios: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = tuple(
        round(0.1 * tenths, 1) for tenths in range(1, 10)
    )


@dataclass(frozen=True)
class _Rungs:
    """The choices of one layer on the grid, by ascending cost, the last one dense."""

    ranks: NDArray[np.int64]
    costs: NDArray[np.int64]
    losses: NDArray[np.float64]

    def at(self, threshold: float) -> int:
        """Return the cheapest choice within the threshold, else dense."""
        within = np.flatnonzero(self.losses <= threshold)
        return int(within[0]) if len(within) else len(self.losses) - 1


def allocate(request: AllocationRequest, options: Options) -> dict[str, int | None]:
    ratios = tuple(sorted(options.ratios))
    rungs = _on_grid(request, ratios)
    if _cost(rungs, np.inf) > request.weights:
        rungs = _on_grid(request, (0.0, *ratios))
    threshold = _least_threshold(rungs, request.weights)
    return {
        curve.name: int(rung.ranks[rung.at(threshold)]) or None
        for curve, rung in zip(request.curves, rungs, strict=True)
    }


def _on_grid(request: AllocationRequest, ratios: tuple[float, ...]) -> list[_Rungs]:
    return [
        _rungs(request.choices(curve), [ratio * curve.dense_cost for ratio in ratios])
        for curve in request.curves
    ]


def _rungs(choices: RankChoices, allowed: list[float]) -> _Rungs:
    """Return per allowed cost the most expensive choice within it (else the cheapest), and
    dense.
    """
    places = np.searchsorted(choices.costs, np.array(allowed) + 1e-9, side="right") - 1
    picked = np.unique(np.append(np.maximum(places, 0), len(choices.costs) - 1))
    return _Rungs(choices.ranks[picked], choices.costs[picked], choices.losses[picked])


def _cost(rungs: list[_Rungs], threshold: float) -> int:
    return sum(int(rung.costs[rung.at(threshold)]) for rung in rungs)


def _least_threshold(rungs: list[_Rungs], budget: int) -> float:
    """Return the least threshold that meets the budget, by bisection over the losses."""
    thresholds = [-np.inf, *np.unique(np.concatenate([rung.losses for rung in rungs]))]
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        fits = _cost(rungs, thresholds[middle]) <= budget
        low, high = (low, middle) if fits else (middle + 1, high)
    return float(thresholds[low])
