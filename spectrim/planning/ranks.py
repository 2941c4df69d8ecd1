"""The ranks of an allocation, at a budget of weights or of measured time.

An allocation that knows a choice by its cost and its loss alone is given times as costs. Any
other one spends weights, and gets as many of them as the time allows:

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
    """By layer, None to leave it dense, and what a plan is to remember of the choice.

    Raises InputError for a budget that no ranks meet, and one of time without `times`.
    """
    if settings.latency_budget is None:
        ranks = _allocated(request, settings)
        return ranks, request.facts(ranks)
    if times is None:
        raise InputError("a budget of time needs measured times; see `pipeline.latency_table`")
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
    """For the most weights that bisection finds to fit in the time; all of them first."""
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
            f"allocation '{settings.allocation}' meets no budget of time of {timed.budget:g} "
            f"here; raise it, or take {', '.join(BY_TIME)}, which chooses by time"
        )
    return best


def _allocated_or_none(
    request: AllocationRequest, budget: float, settings: PlanningSettings
) -> Ranks | None:
    try:
        return _allocated(replace(request, budget=budget), settings)
    except InputError:
        return None
