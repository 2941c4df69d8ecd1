"""The vectorised steps of the knapsack against their readable twins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from spectrim.allocation import _knapsack
from spectrim.allocation._knapsack import KnapsackGroup, solve_knapsack

SHAPES = ((64, 64), (16, 64), (172, 64), (64, 172))


def layers(seed: int, noise: float) -> list[KnapsackGroup]:
    """Rank curves with the costs of pivoted layers, each left dense in the end."""
    random = np.random.default_rng(seed)
    groups = []
    for out, inner in SHAPES * 3:
        ranks = np.arange(1, min(out, inner))
        energy = np.exp(-random.uniform(0.02, 0.1) * np.arange(min(out, inner)))
        energy *= np.exp(noise * random.standard_normal(len(energy)))
        losses = np.append(np.cumsum(energy[::-1])[::-1][1:], 0.0)
        costs = np.append(ranks * (out + inner - ranks), out * inner)
        groups.append(KnapsackGroup(costs.astype(np.int64), losses))
    return groups


def chain(group: KnapsackGroup) -> list[int]:
    """The monotone chain, one item after another."""
    hull: list[int] = []
    for i in range(len(group.costs)):
        if hull and group.losses[i] >= group.losses[hull[-1]]:
            continue
        while len(hull) > 1 and slope(group, hull[-2], hull[-1]) >= slope(group, hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull


def slope(group: KnapsackGroup, a: int, b: int) -> float:
    return float((group.losses[b] - group.losses[a]) / (group.costs[b] - group.costs[a]))


def climbed(groups: list[KnapsackGroup], budget: int) -> tuple[float, list[int]]:
    """Steps of all hulls, steepest first, until one does not fit."""
    hulls = [chain(group) for group in groups]
    steps = [
        (slope(groups[g], a, b), g, b)
        for g, hull in enumerate(hulls)
        for a, b in pairwise(hull)
    ]
    plan = [hull[0] for hull in hulls]
    spent = sum(int(group.costs[i]) for group, i in zip(groups, plan, strict=True))
    for steepness, g, item in sorted(steps):
        extra = int(groups[g].costs[item] - groups[g].costs[plan[g]])
        if spent + extra > budget:
            return -steepness, plan
        spent, plan[g] = spent + extra, item
    return 0.0, plan


def greedy(groups: list[KnapsackGroup], plan: list[int], budget: int) -> list[int]:
    """Every group looked at anew for every step."""
    plan = list(plan)
    while True:
        left = budget - sum(int(g.costs[i]) for g, i in zip(groups, plan, strict=True))
        steps = []
        for g, (group, at) in enumerate(zip(groups, plan, strict=True)):
            for item in range(len(group.costs)):
                extra = int(group.costs[item] - group.costs[at])
                gain = float(group.losses[at] - group.losses[item])
                if extra <= left and gain > 0:
                    steps.append((-gain / max(extra, 1), g, item))
        if not steps:
            return plan
        _, g, item = min(steps)
        plan[g] = item


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_hull_relaxation_and_greedy_rest_equal_their_twins(seed, noise):
    groups = layers(seed, noise)
    for group in groups:
        assert _knapsack.convex_hull(group).tolist() == chain(group)
    dense = sum(int(group.costs[-1]) for group in groups)
    for budget in (dense // 3, int(0.8 * dense), dense):
        multiplier, plan = _knapsack._relaxed(groups, budget)
        assert (multiplier, plan) == climbed(groups, budget)
        rest = _knapsack._spend_rest(groups, plan, budget)
        assert rest == greedy(groups, plan, budget)


def test_an_item_that_is_dearer_and_no_better_is_not_on_the_hull():
    costs, losses = np.array([4, 9, 6, 6, 8]), np.array([9.0, 7.0, 6.0, 5.0, 5.0])
    assert _knapsack.convex_hull(KnapsackGroup(costs, losses)).tolist() == [0, 3]


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_left_as_it_is_lies_within_what_is_negligible(seed, monkeypatch):
    groups = layers(seed, 0.2)
    budget = sum(int(group.costs[-1]) for group in groups) // 2
    exact = solve_knapsack(groups, budget)
    monkeypatch.setattr(_knapsack, "MOST_BINS", 50)
    monkeypatch.setattr(_knapsack, "NEGLIGIBLE", 0.5)
    rough = solve_knapsack(groups, budget)
    bound = _knapsack._lower_bound(groups, _knapsack._relaxed(groups, budget)[0], budget)
    assert bound <= _knapsack._loss(groups, exact) <= _knapsack._loss(groups, rough)
    assert _knapsack._loss(groups, rough) <= (1 + _knapsack.NEGLIGIBLE) * bound
