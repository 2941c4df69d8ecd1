"""The multiple-choice knapsack against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import _knapsack
from spectrim.allocation._knapsack import KnapsackGroup, solve_knapsack
from tests.tolerances import LOSS_RELATIVE


def random_groups(seed: int, unit: int) -> list[KnapsackGroup]:
    generator = np.random.default_rng(seed)
    groups = []
    for _ in range(int(generator.integers(2, 6))):
        count = int(generator.integers(1, 7))
        costs = np.sort(generator.choice(np.arange(1, 60), count, replace=False)) * unit
        losses = generator.exponential(size=count) * np.exp(generator.normal())
        if seed % 2 == 0:
            losses = np.sort(losses)[::-1].copy()  # dearer is better: every item competes
        if generator.random() < 0.3:
            losses = np.round(losses)
        if seed % 3 == 0:
            losses += 1000  # optimum and runner-up within a fraction of a percent
        groups.append(KnapsackGroup(costs.astype(np.int64), losses))
    return groups


def enumerate_best(groups: list[KnapsackGroup], budget: int) -> float:
    best = np.inf
    for picked in itertools.product(*(range(len(g.costs)) for g in groups)):
        if sum(g.costs[i] for g, i in zip(groups, picked, strict=True)) <= budget:
            best = min(best, sum(g.losses[i] for g, i in zip(groups, picked, strict=True)))
    return float(best)


def total(values: list, picked: list[int]) -> float:
    return sum(v[i] for v, i in zip(values, picked, strict=True))


@given(st.integers(0, 10**6), st.floats(0.0, 1.1), st.sampled_from((1, 7, 4096)))
@settings(max_examples=250, deadline=None, derandomize=True)
def test_equals_enumeration(seed, position, unit):
    groups = random_groups(seed, unit)
    least = sum(int(g.costs[0]) for g in groups)
    most = sum(int(g.costs[-1]) for g in groups)
    budget = int(least + position * (most - least))
    picked = solve_knapsack(groups, budget)
    assert total([g.costs for g in groups], picked) <= budget
    best = enumerate_best(groups, budget)
    assert total([g.losses for g in groups], picked) <= best * (1 + LOSS_RELATIVE) + 1e-15


@pytest.mark.parametrize("seed", range(10))
def test_rounded_costs_never_break_the_budget(seed, monkeypatch):
    """With too few bins for exact costs the plan fits, and is no worse than greed alone."""
    monkeypatch.setattr(_knapsack, "MOST_BINS", 16)
    groups = random_groups(seed, 101)
    budget = sum(int(g.costs[len(g.costs) // 2]) for g in groups)
    picked = solve_knapsack(groups, budget)
    assert total([g.costs for g in groups], picked) <= budget
    greedy = [0] * len(groups)
    assert total([g.losses for g in groups], picked) <= total(
        [g.losses for g in groups], _knapsack._spend_rest(groups, greedy, budget)
    ) * (1 + LOSS_RELATIVE)


def test_exact_budget_of_the_cheapest_items():
    groups = random_groups(3, 1)
    budget = sum(int(g.costs[0]) for g in groups)
    assert solve_knapsack(groups, budget) == [0] * len(groups)
