"""The ranks of an allocation, at a budget of weights or of measured time.

An allocation that uses only the cost and the loss of a choice gets times as costs. Any other
one spends weights, as many of them as the time allows:

    max b   subject to   sum_l time_l(r_l(b)) <= budget * sum_l time_l(dense)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spectrim.allocation import (
    ALLOCATORS,
    BY_TIME,
    AllocationRequest,
    LatencyTable,
    TimedRequest,
)
from spectrim.errors import InputError
from spectrim.planning.settings import PlanningSettings

Ranks = dict[str, int | None]
_BISECTIONS = 16


def choose_ranks(
    request: AllocationRequest, settings: PlanningSettings, times: LatencyTable | None
) -> tuple[Ranks, dict[str, Any]]:
    """Return ranks by layer, None to leave it dense, and the plan's record of the choice.

    Raises InputError for a budget that no ranks meet, and for one of time without `times`.
    """
    if settings.latency_budget is None:
        ranks = _allocated(request, settings)
        return ranks, request.facts(ranks)
    if times is None:
        raise InputError("a latency budget needs measured times; see `pipeline.latency_table`")
    timed = TimedRequest.of(request, settings.latency_budget, times)
    if settings.allocation in BY_TIME:
        ranks = _allocated(timed, settings)
    else:
        ranks = _within(timed, request, settings)
    return ranks, timed.facts(ranks)


def _allocated(request: AllocationRequest, settings: PlanningSettings) -> Ranks:
    options = ALLOCATORS.options(settings.allocation, dict(settings.allocation_options))
    return ALLOCATORS.get(settings.allocation).allocate(request, options)


def _within(
    timed: TimedRequest, request: AllocationRequest, settings: PlanningSettings
) -> Ranks:
    """Return the ranks for the most weights that fit in the time, by bisection."""
    best: Ranks | None = None
    low, high, budget = 0.0, 1.0, 1.0
    for _ in range(_BISECTIONS):
        ranks = _allocated_or_none(request, budget, settings)
        if ranks is not None and timed.spent(ranks) <= timed.weights:
            best, low = ranks, budget
        else:
            high = budget
        budget = (low + high) / 2
    if best is None:
        raise InputError(
            f"'{settings.allocation}' cannot meet the latency budget {timed.budget:g} here; "
            f"raise it, or use {', '.join(BY_TIME)}, which optimizes time"
        )
    return best


def _allocated_or_none(
    request: AllocationRequest, budget: float, settings: PlanningSettings
) -> Ranks | None:
    try:
        return _allocated(replace(request, budget=budget), settings)
    except InputError:
        return None
