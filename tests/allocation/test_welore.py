"""WeLore: the global threshold against a scan over all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS, AllocationRequest, LayerCurve
from spectrim.allocation.welore import Options, allocate, min_max_scale
from spectrim.errors import InputError

SHAPES = ((16, 16), (32, 16), (16, 32), (8, 24))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def layer(name: str, shape: tuple[int, int], spectrum) -> LayerCurve:
    return LayerCurve(name, shape, np.zeros(min(shape) + 1), np.asarray(spectrum, float))


def random_curves(seed: int, count: int = 6) -> tuple[LayerCurve, ...]:
    generator = np.random.default_rng(seed)
    return tuple(
        layer(
            f"h.{i}",
            SHAPES[i % 4],
            np.sort(generator.lognormal(0, 1.5, min(SHAPES[i % 4])))[::-1].copy(),
        )
        for i in range(count)
    )


def at_threshold(request: AllocationRequest, threshold: float, minimum: float) -> dict:
    """The rule itself, layer by layer; every layer keeps at least its cheapest choice."""
    plan = {}
    for curve in request.curves:
        s = [float(v) for v in curve.spectrum]
        rank = sum((v - s[-1]) / (s[0] - s[-1]) > threshold for v in s)
        full = len(s)
        cheaper = [r for r in range(1, full + 1) if request.cost(curve, r) < curve.dense_cost]
        useful = [r for r in cheaper if r <= (1 - minimum) * full]
        smallest = cheaper[0] if cheaper else None
        dense = smallest is None or rank > max(useful, default=smallest)
        plan[curve.name] = None if dense else max(rank, smallest)
    return plan


def cost(request: AllocationRequest, plan: dict) -> int:
    return sum(request.cost(curve, plan[curve.name]) for curve in request.curves)


def scanned(request: AllocationRequest, minimum: float) -> dict:
    """The lowest of all thresholds whose plan fits."""
    thresholds = np.unique(
        [1.0, *np.concatenate([min_max_scale(c.spectrum) for c in request.curves])]
    )
    plans = [at_threshold(request, float(t), minimum) for t in thresholds]
    return next(plan for plan in plans if cost(request, plan) <= request.weights)


@given(
    st.integers(0, 10**6),
    st.floats(0.15, 0.99),
    st.sampled_from(("lowrank", "pivoted")),
    st.sampled_from((0.0, 0.3, 0.5, 0.8)),
)
@quick
def test_no_less_than_the_lowest_threshold_that_fits(seed, budget, kind, minimum):
    """The leftover is spent on top; what it buys is less than one step of some layer."""
    request = AllocationRequest(random_curves(seed), budget, kind)
    plan, rule = allocate(request, Options(minimum)), scanned(request, minimum)
    assert cost(request, plan) <= request.weights
    for curve in request.curves:
        assert request.cost(curve, plan[curve.name]) >= request.cost(curve, rule[curve.name])


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from(("lowrank", "pivoted")))
@quick
def test_equals_the_rule_at_the_budget_of_a_threshold(seed, position, kind):
    curves = random_curves(seed)
    values = np.unique(np.concatenate([min_max_scale(c.spectrum) for c in curves]))
    whole = AllocationRequest(curves, 1.0, kind)
    rule = at_threshold(whole, float(values[position]), 0.5)
    request = AllocationRequest(curves, cost(whole, rule) / whole.dense_cost, kind)
    assert allocate(request, Options()) == rule


def test_a_layer_that_reduces_too_little_stays_dense():
    steep = layer("steep", (32, 32), 0.5 ** np.arange(32))
    slow = layer("slow", (32, 32), np.linspace(1, 0, 32) ** 0.2)
    plan = allocate(AllocationRequest((steep, slow), 0.7, "pivoted"), Options())
    assert plan["slow"] is None
    assert plan["steep"] <= 16


def test_more_reduction_asked_leaves_more_dense():
    request = AllocationRequest(random_curves(1), 0.8, "pivoted")
    for minimum in (0.25, 0.5, 0.75):
        plan = allocate(request, Options(minimum))
        for curve in request.curves:
            rank = plan[curve.name]
            assert rank is None or rank <= max(1, (1 - minimum) * min(curve.shape))


def test_multiples_round_down():
    """At the cost of a threshold's rounded ranks the plan is those ranks."""
    powers = enumerate((0.9, 1.0, 1.2))
    curves = tuple(layer(f"h.{i}", (32, 32), 0.8 ** np.arange(32) ** p) for i, p in powers)
    counts = [int((min_max_scale(c.spectrum) > 0.1).sum()) for c in curves]
    rounded = {c.name: n // 4 * 4 for c, n in zip(curves, counts, strict=True)}
    assert len(set(rounded.values())) == 3
    assert max(counts) <= 16
    whole = AllocationRequest(curves, 1.0, "pivoted", 4)
    budget = cost(whole, rounded) / whole.dense_cost
    assert allocate(AllocationRequest(curves, budget, "pivoted", 4), Options()) == rounded


def test_flat_and_dead_spectra():
    curves = (
        layer("flat", (16, 16), np.ones(16)),
        layer("dead", (16, 16), np.zeros(16)),
        layer("steep", (16, 16), 0.5 ** np.arange(16)),
    )
    plan = allocate(AllocationRequest(curves, 0.6, "pivoted"), Options())
    assert plan["flat"] is None
    assert plan["dead"] < plan["steep"]


def test_normalized_is_min_max():
    np.testing.assert_allclose(min_max_scale(np.array([5.0, 3.0, 1.0])), [1.0, 0.5, 0.0])
    assert min_max_scale(np.array([2.0])).tolist() == [1.0]


@pytest.mark.parametrize("minimum", [-0.1, 1.0])
def test_minimum_out_of_range(minimum):
    with pytest.raises(InputError, match="minimum"):
        ALLOCATORS.options("welore", {"minimum": minimum})
