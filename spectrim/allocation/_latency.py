"""Latency budgets: the time of a layer is looked up in a table of measurements.

    min sum_l loss_l(r_l)   subject to   sum_l time_l(r_l) <= budget * sum_l time_l(dense)

Times between measured ranks are interpolated and made to ascend with the rank, so that a dip
at a smaller rank is never paid for twice. The unit is one nanosecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectrim.allocation._request import AllocationRequest, LayerCurve, RankChoices
from spectrim.errors import InputError
from spectrim.layers import layer_class

NANOSECONDS = 1e9
BY_TIME = ("loss_optimal",)
"""Allocators that know a choice by what it costs and loses alone."""
TIMED = ("lowrank", "pivoted")
"""Layer types whose time depends on the rank alone."""
TIMED_ONLY = (
    "a budget of time knows layers of type lowrank and pivoted, none that share a basis"
)
"""The message where another layer is to be timed."""
Key = tuple[tuple[int, int], str]


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of one weight shape: dense, and factored at some ranks, ascending."""

    dense: float
    ranks: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, rank: int | None) -> float:
        if rank is None:
            return self.dense
        ascending = np.maximum.accumulate(self.seconds)
        return float(np.interp(rank, self.ranks, ascending))


@dataclass(frozen=True)
class LatencyTable:
    """Times by weight shape (out, in) and layer type, for `tokens` tokens at once."""

    times: Mapping[Key, LayerTimes]
    tokens: int

    def seconds(self, shape: tuple[int, int], kind: str, rank: int | None) -> float:
        """Return the interpolated times. Raises InputError for a shape that was not
        measured.
        """
        if (shape, kind) not in self.times:
            raise InputError(
                f"no measured times of {kind} layers of shape {shape}; {TIMED_ONLY}"
            )
        return self.times[shape, kind].at(rank)


@dataclass(frozen=True)
class TimedRequest(AllocationRequest):
    """A request with costs in nanoseconds and `budget` a fraction of the dense layers' time."""

    times: LatencyTable = field(default_factory=lambda: LatencyTable({}, 1))

    @classmethod
    def of(cls, request: AllocationRequest, budget: float, times: LatencyTable) -> TimedRequest:
        """Return the request in time. Raises InputError for missing times, an unreachable
        budget.
        """
        return cls(request.curves, budget, request.layer, request.multiple, None, times)

    def cost(self, curve: LayerCurve, rank: int | None) -> int:
        kind = curve.layer or self.layer
        return max(1, round(self.times.seconds(curve.shape, kind, rank) * NANOSECONDS))

    def choices(self, curve: LayerCurve) -> RankChoices:
        """Return the allowed choices that also store less than the dense layer."""
        found = super().choices(curve)
        kind = layer_class(curve.layer or self.layer)
        fits = np.array(
            [r == 0 or kind.cost(*curve.shape, int(r)) < curve.dense_cost for r in found.ranks]
        )
        return RankChoices(found.ranks[fits], found.costs[fits], found.losses[fits])

    @property
    def dense_cost(self) -> int:
        return sum(self.cost(curve, None) for curve in self.curves)

    def spent(self, ranks: Mapping[str, int | None]) -> int:
        return sum(self.cost(curve, ranks[curve.name]) for curve in self.curves)

    def facts(self, ranks: Mapping[str, int | None]) -> dict[str, Any]:
        share = round(self.spent(ranks) / self.dense_cost, 4)
        return {
            "latency": {"budget": self.budget, "tokens": self.times.tokens, "predicted": share}
        }
