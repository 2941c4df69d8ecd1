"""Ranks of low-rank corrections beside quantized layers, under one budget.

    min sum_l loss_l(r_l)   subject to   sum_l r_l (out_l + in_l) <= budget

where loss_l(0) is the loss of the quantizer alone. Unlike a factored layer, rank 0 costs
nothing and is allowed.
"""

from __future__ import annotations

import numpy as np

from spectrim.allocation import KnapsackGroup, solve_knapsack
from spectrim.planning.decomposition import Decomposition
from spectrim.planning.rank_multiples import multiple_for
from spectrim.planning.settings import PlanningSettings

Shapes = dict[str, tuple[int, int]]


def correction_ranks(
    residual: Decomposition, settings: PlanningSettings, budget: int
) -> dict[str, int]:
    """Return the rank of each layer's correction, for `budget` numbers in all of them.

    Ranks are multiples of the settings', except for layers that have fewer.
    """
    shapes = residual.shapes
    multiple = multiple_for(settings.rank_multiple, shapes.values())
    if settings.allocation == "uniform":
        return _uniform(shapes, budget, multiple)
    items = [_items(residual, name, multiple) for name in shapes]
    picked = solve_knapsack(items, budget)
    return {n: index * multiple for n, index in zip(shapes, picked, strict=True)}


def uniform_cost(shapes: Shapes, rank: int) -> int:
    """Return the numbers in corrections of one rank, or of the highest that a layer has."""
    return sum(sum(shape) * min(rank, *shape) for shape in shapes.values())


def _uniform(shapes: Shapes, budget: int, multiple: int) -> dict[str, int]:
    """Return the largest rank for all within the budget."""
    rank, most = 0, max(min(shape) for shape in shapes.values())
    while rank < most and uniform_cost(shapes, rank + multiple) <= budget:
        rank += multiple
    return {name: min(rank, *shape) for name, shape in shapes.items()}


def _items(residual: Decomposition, name: str, multiple: int) -> KnapsackGroup:
    losses = residual.curves[name].numpy()[::multiple]
    steps = np.arange(len(losses), dtype=np.int64)
    return KnapsackGroup(steps * multiple * sum(residual.shapes[name]), losses)
