"""Sizes nested in one another: order, storage, and what a budget, a loss or a time means."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from spectrim.allocation import (
    ALLOCATORS,
    AllocationRequest,
    LatencyTable,
    LayerCurve,
    LayerTimes,
    NestedSizes,
    nest_sizes,
)
from spectrim.errors import InputError
from spectrim.layers import layer_class

SHAPES = {"a": (24, 24), "b": (40, 16), "c": (16, 40), "d": (32, 32)}
BUDGETS = (0.4, 0.47, 0.55, 0.6, 0.68, 0.75, 0.8, 0.87, 0.9)


def request(kind: str, budget: float = 0.9, **changes) -> AllocationRequest:
    source, curves = np.random.default_rng(0), []
    for number, (name, shape) in enumerate(SHAPES.items()):
        spectrum = np.sort(source.random(min(shape)) ** (1 + number))[::-1]
        tail = np.append(np.cumsum((spectrum**2)[::-1])[::-1], 0.0)
        curves.append(LayerCurve(name, shape, tail, spectrum))
    return AllocationRequest(tuple(curves), budget, kind, **changes)


def nested(kind: str, **changes) -> NestedSizes:
    return nest_sizes(request(kind, **changes), 0.4, lambda loss: 2 * loss)


def summed_loss(sizes: NestedSizes, budget: float) -> float:
    ranks = sizes.ranks(budget)
    return sum(float(c.loss[r]) for c in request("lowrank").curves if (r := ranks[c.name]))


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_the_whole_steps_lie_within_one_another(kind):
    sizes = nested(kind)
    budgets = [kept for kept, _ in sizes.curve() if kept >= sizes.smallest]
    assert len(budgets) > 20
    for small, large in pairwise(sizes.ranks(budget) for budget in budgets):
        assert small != large
        for name in SHAPES:
            assert large[name] is None or (small[name] or 99) <= large[name]


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_a_size_spends_its_budget(kind):
    """No layer could have one rank more of those that are stored."""
    sizes = nested(kind)
    for budget in BUDGETS:
        plan = sizes.ranks(budget)
        left = budget * sizes.dense_weights - sizes.cost(plan)
        assert left >= 0
        for name, rank in plan.items():
            (out, inner), layer = SHAPES[name], sizes.layers[name]
            if rank is not None and rank < layer.components:
                more = layer_class(kind).cost(out, inner, rank + 1)
                fits = more - layer_class(kind).cost(out, inner, rank) <= left
                assert not fits or more >= out * inner


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_the_cost_is_that_of_the_layers(kind):
    sizes = nested(kind)
    for budget in BUDGETS:
        plan = sizes.ranks(budget)
        assert sizes.cost(plan) <= budget * sizes.dense_weights
        costs = {
            n: out * inner if plan[n] is None else layer_class(kind).cost(out, inner, plan[n])
            for n, (out, inner) in SHAPES.items()
        }
        assert sizes.cost(plan) == sum(costs.values())


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_stored_tensors_hold_every_size(kind):
    sizes = nested(kind)
    for budget in BUDGETS:
        for name, rank in sizes.ranks(budget).items():
            layer = sizes.layers[name]
            whole = layer.has_dense or layer.components == min(layer.shape)
            assert whole if rank is None else rank <= layer.components


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
@pytest.mark.parametrize("budget", BUDGETS[1:-1])
def test_the_loss_is_near_that_of_the_free_plan(kind, budget):
    """It is no worse than the best plan of a size that is smaller by a few ranks."""

    def best_loss(budget: float) -> float:
        curves = request(kind, budget).curves
        ranks = ALLOCATORS.get("loss_optimal").allocate(request(kind, budget), None)
        return sum(float(c.loss[ranks[c.name]]) for c in curves if ranks[c.name])

    found = summed_loss(nested(kind), budget)
    assert best_loss(budget) <= found * (1 + 1e-12)
    assert found <= best_loss(budget - 0.03)


def test_losses_fall_with_the_size_and_are_those_of_the_whole_model():
    sizes = nested("pivoted")
    losses = [loss for _, loss in sizes.curve()]
    assert losses == sorted(losses, reverse=True)
    kept = [kept for kept, _ in sizes.curve()]
    assert kept == sorted(kept)
    assert kept[-1] <= 0.9
    assert sizes.loss(0.9) == pytest.approx(2 * summed_loss(sizes, 0.9))
    assert sizes.loss(0.6) >= 2 * summed_loss(sizes, 0.6)


def test_a_budget_for_a_loss_is_the_smallest_that_meets_it():
    sizes = nested("pivoted")
    target = sizes.loss(0.7)
    budget = sizes.budget_for_loss(target)
    assert sizes.loss(budget) <= target
    assert budget <= 0.7
    assert sizes.loss(budget - 0.05) > target
    with pytest.raises(InputError, match="below"):
        sizes.budget_for_loss(sizes.losses[-1] / 2)


def test_a_budget_for_numbers_spends_them():
    sizes = nested("lowrank")
    budget = sizes.budget_for_weights(0.66 * sizes.dense_weights)
    assert budget == pytest.approx(0.66)
    assert sizes.budget_for_weights(10 * sizes.dense_weights) == sizes.largest
    with pytest.raises(InputError, match="smallest size"):
        sizes.budget_for_weights(10)


def test_a_budget_for_a_time_is_the_largest_that_meets_it():
    sizes = nested("lowrank")
    times = LatencyTable(
        {
            (shape, "lowrank"): LayerTimes(1.0, (1, min(shape)), (0.1, 1.9))
            for shape in SHAPES.values()
        },
        1,
    )

    def seconds(budget: float) -> float:
        ranks = sizes.ranks(budget)
        return sum(times.seconds(SHAPES[n], "lowrank", r) for n, r in ranks.items())

    budget = sizes.budget_for_time(times, 0.6)
    assert seconds(budget) <= 0.6 * 4
    assert seconds(min(budget + 0.05, 0.9)) > 0.6 * 4
    with pytest.raises(InputError, match="smallest size"):
        sizes.budget_for_time(times, 0.01)


@pytest.mark.parametrize("budget", [0.39, 0.91])
def test_sizes_outside_the_range_are_refused(budget):
    with pytest.raises(InputError, match=r"0\.4 to 0\.9"):
        nested("pivoted").ranks(budget)


def test_a_range_that_no_ranks_meet_is_refused():
    with pytest.raises(InputError, match="smallest possible model"):
        nest_sizes(request("lowrank"), 0.001, float)


def test_many_steps_are_merged(monkeypatch):
    fine = nested("pivoted")
    monkeypatch.setattr("spectrim.allocation._nested.MOST_STEPS", 40)
    coarse = nested("pivoted")
    assert len(coarse.steps) < 0.7 * len(fine.steps)
    for budget in BUDGETS:
        assert coarse.cost(coarse.ranks(budget)) <= budget * coarse.dense_weights


def test_ranks_are_multiples_where_they_have_to_be():
    sizes = nested("lowrank", multiple=4)
    for budget in BUDGETS:
        assert all(rank is None or rank % 4 == 0 for rank in sizes.ranks(budget).values())
