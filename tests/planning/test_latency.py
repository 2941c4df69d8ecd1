"""Budgets of time: from a table of times to ranks, and multiples that suit a device."""

from __future__ import annotations

import numpy as np
import pytest

from spectrim.allocation import LatencyTable, LayerTimes
from spectrim.errors import InputError
from spectrim.pipeline.recipe import LatencyRecipe, Recipe, SharingRecipe
from spectrim.planning import make_plan, size_curve
from spectrim.planning.rank_multiples import auto_multiple, multiple_for
from spectrim.pruning import PruningOptions
from tests.planning.test_planner import SHAPES, decomposition

RANKS = (1, 4, 16)


def table(slow: str = "", tokens: int = 1) -> LatencyTable:
    """A microsecond per 100 weights, and 1 for each call; layers of shape `slow` take 10."""
    times = {}
    for name, (rows, columns) in SHAPES.items():
        factor = 10.0 if name == slow else 1.0
        seconds = tuple(factor * (2 + r * (rows + columns) / 100) * 1e-6 for r in RANKS)
        times[(rows, columns), "lowrank"] = LayerTimes(
            (1 + rows * columns / 100) * 1e-6, RANKS, seconds
        )
    return LatencyTable(times, tokens)


def recipe(**changes) -> Recipe:
    return Recipe(method="svd", **{"layer": "lowrank", **changes})


def timed(budget: float, times: LatencyTable, **changes):
    given = recipe(latency=LatencyRecipe(budget=budget), **changes)
    return make_plan(decomposition(), given.planning, times)


def total(plan, times: LatencyTable) -> float:
    return sum(times.seconds(p.shape, "lowrank", p.rank) for p in plan.layers.values())


@pytest.mark.parametrize("budget", [0.75, 0.9, 1.0])
def test_a_plan_stays_within_its_time(budget):
    times = table()
    plan = timed(budget, times)
    dense = sum(times.seconds(shape, "lowrank", None) for shape in SHAPES.values())
    share = total(plan, times) / dense
    assert share <= budget + 1e-3
    facts = plan.provenance["latency"]
    assert facts["budget"] == budget
    assert facts["predicted"] == pytest.approx(share, abs=2e-3)
    assert 0 < plan.kept <= 1


def test_layers_that_are_slow_when_factored_stay_dense():
    plan = timed(0.9, table(slow="d"))
    assert plan.layers["d"].rank is None
    assert plan.ranks


def test_no_other_plan_within_the_time_is_predicted_to_lose_less():
    times, rng = table(), np.random.default_rng(0)
    best = timed(0.85, times)
    whole = decomposition()
    dense = sum(times.seconds(shape, "lowrank", None) for shape in SHAPES.values())
    for _ in range(500):
        ranks = {
            n: int(rng.integers(0, s[0] * s[1] // sum(s))) or None for n, s in SHAPES.items()
        }
        spent = sum(times.seconds(SHAPES[n], "lowrank", r) for n, r in ranks.items())
        if spent <= 0.85 * dense:
            loss = sum(float(whole.curves[n][r]) for n, r in ranks.items() if r)
            own = sum(layer.predicted_loss for layer in best.layers.values())
            assert own <= loss + 1e-9


def test_times_are_interpolated_and_never_fall_with_the_rank():
    times = LayerTimes(9.0, (2, 4, 8), (1.0, 3.0, 2.0))
    assert times.at(3) == 2.0
    assert times.at(8) == 3.0
    assert times.at(1) == 1.0
    assert times.at(None) == 9.0


def test_what_has_no_times_says_so():
    with pytest.raises(InputError, match="no measured times of pivoted layers of shape"):
        timed(0.9, table(), layer="pivoted")
    with pytest.raises(InputError, match="'uniform' cannot meet the latency budget"):
        timed(0.9, table(slow="d"), allocation="uniform")
    with pytest.raises(InputError, match="below the smallest possible"):
        timed(0.05, table())


@pytest.mark.few(1)
@pytest.mark.parametrize("allocation", ["uniform", "d_rank", "zs_svd"])
def test_an_allocation_by_weights_gets_as_many_as_the_time_allows(allocation):
    """No budget of weights that fits in the time keeps more."""
    times = table()
    plan = timed(0.8, times, allocation=allocation)
    assert plan.allocation == allocation
    assert plan.provenance["latency"]["predicted"] <= 0.8
    dense = sum(times.seconds(shape, "lowrank", None) for shape in SHAPES.values())
    for budget in np.arange(0.2, 1.0, 0.01):
        other = make_plan(
            decomposition(), recipe(budget=budget, allocation=allocation).planning
        )
        if total(other, times) <= 0.8 * dense:
            assert other.kept <= plan.kept + 1e-9


def test_a_budget_of_time_is_never_left_out_silently():
    with pytest.raises(InputError, match="needs measured times"):
        make_plan(decomposition(), recipe(latency=LatencyRecipe()).planning)
    assert size_curve(decomposition(), recipe(latency=LatencyRecipe()).planning) == size_curve(
        decomposition(), recipe().planning
    )
    with pytest.raises(InputError, match="latency and pruning cannot be combined"):
        recipe(latency=LatencyRecipe(), pruning=PruningOptions())
    for wrong, why in (
        ({"layer": "sparse_dictionary"}, "only lowrank and pivoted layers are timed"),
        ({"sharing": SharingRecipe("adjacent")}, "layers on a shared basis is not measured"),
    ):
        with pytest.raises(InputError, match=why):
            recipe(latency=LatencyRecipe(), **wrong)


def test_multiples_by_device_and_size():
    assert auto_multiple("cuda", [(4096, 4096), (11008, 4096)]) == 64
    assert auto_multiple("cuda", [(768, 768)]) == 32
    assert auto_multiple("cpu", [(768, 768)]) == 8
    assert auto_multiple("cpu", [(40, 40)]) == 2
    assert auto_multiple("cpu", [(8, 8)]) == 1
    assert multiple_for(3, [(8, 8)]) == 3
    plan = make_plan(decomposition(), recipe(budget=0.9, rank_multiple="auto").planning)
    assert plan.ranks
