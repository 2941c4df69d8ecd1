"""One threshold on the losses of single matrices, on a grid of ratios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS, AllocationRequest, LayerCurve
from spectrim.errors import InputError

SEARCH = ALLOCATORS.get("asvd_search")
GRID = [round(0.1 * n, 1) for n in range(1, 10)]


def curve_of(name: str, width: int, scale: float, decay: float = 0.9) -> LayerCurve:
    spectrum = scale * decay ** np.arange(width, dtype=np.float64)
    tails = np.append(np.cumsum((spectrum**2)[::-1])[::-1], 0.0)
    return LayerCurve(name, (width, width), tails, spectrum)


def searched(curves, budget, kind="lowrank", **options):
    request = AllocationRequest(tuple(curves), budget, kind)
    return request, SEARCH.allocate(request, ALLOCATORS.options("asvd_search", options))


def kept(request, curve, rank) -> float:
    return request.cost(curve, rank) / curve.dense_cost


def test_ratios_are_on_the_grid():
    curves = [curve_of(f"layer{i}", 200, 1.0 + i) for i in range(6)]
    request, ranks = searched(curves, 0.5)
    for curve in curves:
        rank = ranks[curve.name]
        if rank is not None:
            nearest = min(GRID, key=lambda g: abs(g - kept(request, curve, rank)))
            assert 0 <= nearest - kept(request, curve, rank) < 400 / curve.dense_cost


@given(st.integers(0, 10**6), st.floats(0.15, 0.95))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_one_threshold_explains_the_plan_and_a_smaller_one_is_too_big(seed, budget):
    """Every kept size is the least below the largest loss taken; with that loss forbidden the
    budget would not be met."""
    generator = np.random.default_rng(seed)
    curves = [
        curve_of(f"layer{i}", 60, float(s), float(d))
        for i, (s, d) in enumerate(generator.uniform([0.1, 0.8], [3, 0.99], (5, 2)))
    ]
    request, ranks = searched(curves, budget)
    spent = sum(request.cost(c, ranks[c.name]) for c in curves)
    assert spent <= request.weights
    taken = {c.name: c.loss[ranks[c.name]] for c in curves if ranks[c.name]}
    threshold = max(taken.values())
    for curve in curves:
        assert ranks[curve.name] == least_below(request, curve, threshold)
    stricter = np.nextafter(threshold, 0)
    assert sum(request.cost(c, least_below(request, c, stricter)) for c in curves) > spent
    assert (
        sum(request.cost(c, least_below(request, c, stricter)) for c in curves)
        > request.weights
    )


def least_below(request, curve, threshold) -> int | None:
    for ratio in GRID:
        rank = int(ratio * curve.dense_cost + 1e-9) // sum(curve.shape)
        if rank and curve.loss[rank] <= threshold:
            return rank
    return None


def test_what_loses_little_is_cut_most():
    quiet, loud = curve_of("quiet", 60, 0.01), curve_of("loud", 60, 10.0)
    request, ranks = searched([quiet, loud], 0.55)
    assert kept(request, quiet, ranks["quiet"]) <= 0.1
    assert ranks["loud"] is None


def test_more_budget_never_cuts_a_layer_more():
    curves = [curve_of(f"layer{i}", 60, 1.0 + i, 0.8 + 0.03 * i) for i in range(5)]
    sizes = []
    for budget in np.linspace(0.12, 1.0, 20):
        request, ranks = searched(curves, float(budget))
        sizes.append([request.cost(c, ranks[c.name]) for c in curves])
    assert bool((np.diff(np.array(sizes), axis=0) >= 0).all())


def test_below_the_grid_the_smallest_rank_is_used():
    curves = [curve_of("a", 60, 1.0), curve_of("b", 60, 5.0)]
    _, ranks = searched(curves, 0.05)
    assert ranks == {"a": 1, "b": 1}


@pytest.mark.parametrize("ratios", [(0.0, 0.5), (0.5, 1.0), ("half",)])
def test_ratios_have_to_be_fractions(ratios):
    with pytest.raises(InputError, match="ratios"):
        ALLOCATORS.options("asvd_search", {"ratios": ratios})
