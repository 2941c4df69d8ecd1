"""Multiple-choice knapsack: one item per group, least total loss within a total cost.

    relaxation   lower convex hulls, one multiplier -> a bound and a feasible plan
    reduction    an item whose reduced cost loss + multiplier * cost exceeds its group's best
                 by more than the gap between the two cannot be in a better plan
    core         dynamic programme over what is left (Pisinger's scheme)

Costs are integers; where the remaining slack divided by the costs' common divisor exceeds
`MOST_BINS` the programme rounds costs up to bins, and a last pass spends what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 100_000


@dataclass(frozen=True)
class Items:
    """One group: costs ascending, losses."""

    costs: NDArray[np.int64]
    losses: NDArray[np.float64]


def solve_knapsack(groups: list[Items], budget: int) -> list[int]:
    """Index of the chosen item per group. The cheapest items must fit the budget."""
    multiplier, plan = _relaxed(groups, budget)
    plan = _spend_rest(groups, plan, budget)
    bound = _lower_bound(groups, multiplier, budget)
    gap = _loss(groups, plan) - bound
    if gap <= 1e-12 * max(bound, 1e-30):
        return plan
    kept = [_undecided(group, multiplier, gap) for group in groups]
    core = _programme(groups, kept, budget)
    core = _spend_rest(groups, core, budget) if core is not None else plan
    return min(core, plan, key=lambda p: _loss(groups, p))


def _loss(groups: list[Items], plan: list[int]) -> float:
    return float(sum(g.losses[i] for g, i in zip(groups, plan, strict=True)))


def _cost(groups: list[Items], plan: list[int]) -> int:
    return int(sum(g.costs[i] for g, i in zip(groups, plan, strict=True)))


def _hull(group: Items) -> list[int]:
    """Indices on the lower convex hull of (cost, loss) that lower the loss, ascending cost."""
    hull: list[int] = []
    for i in range(len(group.costs)):
        if hull and group.losses[i] >= group.losses[hull[-1]]:
            continue
        while len(hull) >= 2 and _slope(group, hull[-2], hull[-1]) >= _slope(
            group, hull[-2], i
        ):
            hull.pop()
        if hull and group.costs[i] == group.costs[hull[-1]]:
            hull.pop()
        hull.append(i)
    return hull


def _slope(group: Items, a: int, b: int) -> float:
    """Loss per weight, negative, from item a to the dearer item b."""
    return float((group.losses[b] - group.losses[a]) / max(group.costs[b] - group.costs[a], 1))


def _relaxed(groups: list[Items], budget: int) -> tuple[float, list[int]]:
    """The multiplier of the linear relaxation and the plan before its critical step."""
    hulls = [_hull(group) for group in groups]
    steps = sorted(
        (_slope(groups[g], a, b), g, b)
        for g, hull in enumerate(hulls)
        for a, b in pairwise(hull)
    )
    plan = [hull[0] for hull in hulls]
    spent = _cost(groups, plan)
    for slope, g, item in steps:
        extra = int(groups[g].costs[item] - groups[g].costs[plan[g]])
        if spent + extra > budget:
            return -slope, plan
        spent += extra
        plan[g] = item
    return 0.0, plan


def _lower_bound(groups: list[Items], multiplier: float, budget: int) -> float:
    best = sum(float((g.losses + multiplier * g.costs).min()) for g in groups)
    return best - multiplier * budget


def _undecided(group: Items, multiplier: float, gap: float) -> NDArray[np.int64]:
    reduced = group.losses + multiplier * group.costs
    return np.flatnonzero(reduced - reduced.min() <= gap * (1 + 1e-9))


def _programme(
    groups: list[Items], kept: list[NDArray[np.int64]], budget: int
) -> list[int] | None:
    """Best plan over the kept items, or None when their cheapest do not fit."""
    cheapest = [int(g.costs[k].min()) for g, k in zip(groups, kept, strict=True)]
    slack = budget - sum(cheapest)
    if slack < 0:
        return None
    extras = [g.costs[k] - c for g, k, c in zip(groups, kept, cheapest, strict=True)]
    divisor = max(1, int(np.gcd.reduce(np.concatenate(extras))))
    unit = max(divisor, -(-slack // MOST_BINS))
    bins = slack // unit
    best = np.zeros(bins + 1)
    choices = []
    for group, items, extra in zip(groups, kept, extras, strict=True):
        best, choice = _add_group(best, group.losses[items], -(-extra // unit))
        choices.append(choice)
    return _trace(choices, kept, [-(-extra // unit) for extra in extras], bins)


def _add_group(
    best: NDArray[np.float64], losses: NDArray[np.float64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.unsignedinteger[Any]]]:
    result = np.full_like(best, np.inf)
    choice = np.zeros(len(best), dtype=np.min_scalar_type(len(losses)))
    for index, (loss, width) in enumerate(zip(losses, widths, strict=True)):
        if width >= len(best):
            continue
        candidate = best[: len(best) - width] + loss
        better = candidate < result[width:]
        result[width:][better] = candidate[better]
        choice[width:][better] = index
    return result, choice


def _trace(
    choices: list[NDArray[np.unsignedinteger[Any]]],
    kept: list[NDArray[np.int64]],
    widths: list[NDArray[np.int64]],
    bins: int,
) -> list[int]:
    plan = []
    for choice, items, width in zip(choices[::-1], kept[::-1], widths[::-1], strict=True):
        index = int(choice[bins])
        plan.append(int(items[index]))
        bins -= int(width[index])
    return plan[::-1]


def _spend_rest(groups: list[Items], plan: list[int], budget: int) -> list[int]:
    """Greedy: the best affordable improvement per weight, until none is left."""
    plan = list(plan)
    left = budget - _cost(groups, plan)
    while True:
        best: tuple[float, int, int] | None = None
        for g, (group, at) in enumerate(zip(groups, plan, strict=True)):
            extra = group.costs - group.costs[at]
            gain = group.losses[at] - group.losses
            usable = np.flatnonzero((extra <= left) & (gain > 0))
            if usable.size == 0:
                continue
            rate = gain[usable] / np.maximum(extra[usable], 1)
            top = int(rate.argmax())
            if best is None or rate[top] > best[0]:
                best = (float(rate[top]), g, int(usable[top]))
        if best is None:
            return plan
        _, g, item = best
        left -= int(groups[g].costs[item] - groups[g].costs[plan[g]])
        plan[g] = item
