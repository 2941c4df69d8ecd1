"""Allocation: how many ranks each layer keeps under one budget. One file per allocator.

A module declares `REQUIRES` (statistics beyond the method's), `REFERENCE`, optionally
`Options`, and

    allocate(request, options) -> {layer name: rank, or None to leave it dense}
"""

from spectrim.allocation._knapsack import MOST_BINS, KnapsackGroup, solve_knapsack
from spectrim.allocation._latency import (
    BY_TIME,
    TIMED,
    TIMED_ONLY,
    LatencyTable,
    LayerTimes,
    TimedRequest,
)
from spectrim.allocation._nested import (
    DENSE,
    NestedLayer,
    NestedSizes,
    nest_sizes,
)
from spectrim.allocation._request import (
    BY_STORAGE,
    AllocationRequest,
    ComponentRequest,
    LayerCurve,
    Storage,
)
from spectrim.registry import Registry

ALLOCATORS = Registry("allocation", "spectrim.allocation")

__all__ = [
    "ALLOCATORS",
    "BY_STORAGE",
    "BY_TIME",
    "DENSE",
    "MOST_BINS",
    "TIMED",
    "TIMED_ONLY",
    "AllocationRequest",
    "ComponentRequest",
    "KnapsackGroup",
    "LatencyTable",
    "LayerCurve",
    "LayerTimes",
    "NestedLayer",
    "NestedSizes",
    "Storage",
    "TimedRequest",
    "nest_sizes",
    "solve_knapsack",
]
