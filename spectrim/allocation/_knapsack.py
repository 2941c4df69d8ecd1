"""Multiple-choice knapsack: one item per group, least total loss within a total cost.

    relaxation   lower convex hulls, one multiplier -> a bound and a feasible plan
    reduction    an item whose reduced cost loss + multiplier * cost exceeds its group's best
                 by more than the gap between the two cannot be in a better plan
    core         dynamic program over the remaining items (Pisinger's scheme)

Costs are integers; where the remaining slack divided by the costs' common divisor exceeds
`MOST_BINS` the program rounds costs up to bins, and a last pass spends the remainder. A plan
within `NEGLIGIBLE` of the bound is then accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 100_000
"""The most steps that a budget is divided into."""
MOST_HULLS = 512
NEGLIGIBLE = 1e-5
"""Share of the loss: of a plan this near to the bound, no rounded program makes a better."""


@dataclass(frozen=True)
class KnapsackGroup:
    """One group of items: costs, ascending, and losses."""

    costs: NDArray[np.int64]
    losses: NDArray[np.float64]


def solve_knapsack(groups: list[KnapsackGroup], budget: int) -> list[int]:
    """Return the index of the chosen item per group. The cheapest items must fit the budget."""
    multiplier, plan = _relaxed(groups, budget)
    plan = _spend_rest(groups, plan, budget)
    bound = _lower_bound(groups, multiplier, budget)
    gap = _loss(groups, plan) - bound
    if gap <= 1e-12 * max(bound, 1e-30):
        return plan
    kept = [_undecided(group, multiplier, gap) for group in groups]
    core = _Core.of(groups, kept, budget)
    if core is None or (core.rounded and gap <= NEGLIGIBLE * bound):
        return plan
    found = _spend_rest(groups, core.solved(groups), budget)
    return min(found, plan, key=lambda p: _loss(groups, p))


def _loss(groups: list[KnapsackGroup], plan: list[int]) -> float:
    return float(sum(g.losses[i] for g, i in zip(groups, plan, strict=True)))


def _cost(groups: list[KnapsackGroup], plan: list[int]) -> int:
    return int(sum(g.costs[i] for g, i in zip(groups, plan, strict=True)))


def convex_hull(group: KnapsackGroup) -> NDArray[np.int64]:
    """Return the indices on the lower convex hull of (cost, loss) that lower the loss."""
    return _hull_of(group.costs.tobytes(), group.losses.tobytes())


@lru_cache(maxsize=MOST_HULLS)
def _hull_of(costs: bytes, losses: bytes) -> NDArray[np.int64]:
    """Return the hull, cached by content for other budgets.

    Items above the line between their neighbors are removed, all at once, until none is left.
    """
    group = KnapsackGroup(np.frombuffer(costs, np.int64), np.frombuffer(losses, np.float64))
    before = np.minimum.accumulate(np.append(np.inf, group.losses[:-1]))
    hull = np.flatnonzero(group.losses < before)
    later = np.minimum.accumulate(group.costs[hull][::-1])[::-1]
    hull = hull[np.append(group.costs[hull][:-1] < later[1:], True)]
    while len(hull) > 2:
        slopes = _slopes(group, hull)
        below = slopes[:-1] < slopes[1:]
        if below.all():
            break
        hull = hull[np.concatenate([[True], below, [True]])]
    return hull


def _slopes(group: KnapsackGroup, hull: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the (negative) loss per weight of each step to the next more expensive item."""
    return np.diff(group.losses[hull]) / np.diff(group.costs[hull])


def _relaxed(groups: list[KnapsackGroup], budget: int) -> tuple[float, list[int]]:
    """Return the multiplier of the linear relaxation and the plan before its critical step."""
    hulls = [convex_hull(group) for group in groups]
    plan = np.array([hull[0] for hull in hulls])
    owners = np.repeat(np.arange(len(groups)), [len(hull) - 1 for hull in hulls])
    items = np.concatenate([hull[1:] for hull in hulls])
    slopes = np.concatenate([_slopes(g, hull) for g, hull in zip(groups, hulls, strict=True)])
    extra = np.concatenate([np.diff(g.costs[h]) for g, h in zip(groups, hulls, strict=True)])
    order = np.argsort(slopes, kind="stable")
    spent = _cost(groups, plan.tolist()) + np.cumsum(extra[order])
    critical = int(np.searchsorted(spent, budget, side="right"))
    np.maximum.at(plan, owners[order[:critical]], items[order[:critical]])
    if critical == len(order):
        return 0.0, plan.tolist()
    return -float(slopes[order[critical]]), plan.tolist()


def _lower_bound(groups: list[KnapsackGroup], multiplier: float, budget: int) -> float:
    best = sum(float((g.losses + multiplier * g.costs).min()) for g in groups)
    return best - multiplier * budget


def _undecided(group: KnapsackGroup, multiplier: float, gap: float) -> NDArray[np.int64]:
    reduced = group.losses + multiplier * group.costs
    return np.flatnonzero(reduced - reduced.min() <= gap * (1 + 1e-9))


@dataclass(frozen=True)
class _Core:
    """The dynamic program over the remaining items.

    widths: their costs above the group's cheapest, in bins; rounded: whether the costs are no
    multiples of a bin and were rounded up.
    """

    kept: list[NDArray[np.int64]]
    widths: list[NDArray[np.int64]]
    bins: int
    rounded: bool

    @classmethod
    def of(
        cls, groups: list[KnapsackGroup], kept: list[NDArray[np.int64]], budget: int
    ) -> _Core | None:
        """Return the program, or None if the cheapest remaining items do not fit."""
        cheapest = [int(g.costs[k].min()) for g, k in zip(groups, kept, strict=True)]
        slack = budget - sum(cheapest)
        if slack < 0:
            return None
        extras = [g.costs[k] - c for g, k, c in zip(groups, kept, cheapest, strict=True)]
        divisor = max(1, int(np.gcd.reduce(np.concatenate(extras))))
        unit = max(divisor, -(-slack // MOST_BINS))
        widths = [-(-extra // unit) for extra in extras]
        return cls(kept, widths, slack // unit, unit > divisor)

    def solved(self, groups: list[KnapsackGroup]) -> list[int]:
        """Return the best plan over the remaining items."""
        best = np.zeros(self.bins + 1)
        choices = []
        for group, items, widths in zip(groups, self.kept, self.widths, strict=True):
            best, choice = _add_group(best, group.losses[items], widths)
            choices.append(choice)
        return _trace(choices, self.kept, self.widths, self.bins)


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
        np.copyto(result[width:], candidate, where=better)
        np.copyto(choice[width:], index, where=better)
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


def _spend_rest(groups: list[KnapsackGroup], plan: list[int], budget: int) -> list[int]:
    """Spend the remainder greedily on the best affordable improvement per weight.

    A group's best stays its best while it is affordable, since the remainder only shrinks.
    """
    plan = list(plan)
    left = budget - _cost(groups, plan)
    best = [_improvement(group, at, left) for group, at in zip(groups, plan, strict=True)]
    while True:
        for g, (_, extra, _) in enumerate(best):
            if extra > left:
                best[g] = _improvement(groups[g], plan[g], left)
        g = max(range(len(best)), key=lambda k: best[k][0])
        rate, extra, item = best[g]
        if rate <= 0:
            return plan
        left -= extra
        plan[g] = item
        best[g] = _improvement(groups[g], item, left)


def _improvement(group: KnapsackGroup, at: int, left: int) -> tuple[float, int, int]:
    """Return gain per weight, extra weights and item of the best step that `left` pays for.

    All are zero if there is none.
    """
    extra = group.costs - group.costs[at]
    gain = group.losses[at] - group.losses
    usable = np.flatnonzero((extra <= left) & (gain > 0))
    if usable.size == 0:
        return 0.0, 0, at
    rate = gain[usable] / np.maximum(extra[usable], 1)
    top = int(rate.argmax())
    return float(rate[top]), int(extra[usable[top]]), int(usable[top])
