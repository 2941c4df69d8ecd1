"""Steps in the order of their keys, and layers of one type."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import AllocationRequest, LayerCurve
from spectrim.allocation._greedy import climb, proportional, types_of

SHAPES = ((12, 12), (24, 12), (12, 24), (8, 20))
quick = settings(max_examples=80, deadline=None, derandomize=True)


def curves_of(count: int, seed: int = 0) -> tuple[LayerCurve, ...]:
    generator = np.random.default_rng(seed)
    curves = []
    for i in range(count):
        shape = SHAPES[i % len(SHAPES)]
        spectrum = np.sort(generator.exponential(size=min(shape)))[::-1].copy()
        tails = np.append(np.cumsum((spectrum**2)[::-1])[::-1], 0.0)
        curves.append(LayerCurve(f"blocks.{i}.mix", shape, tails, spectrum))
    return tuple(curves)


def step_by_step(request, choices, keys) -> dict[str, int | None]:
    """Again and again the lowest key among all next steps of layers that have not stopped."""
    picked = [0] * len(choices)
    left = request.weights - request.smallest_cost
    going = {i for i, choice in enumerate(choices) if len(choice.costs) > 1}
    while going:
        layer = min(going, key=lambda i: (keys[i][: picked[i] + 1].max(), i))
        costs = choices[layer].costs
        extra = int(costs[picked[layer] + 1] - costs[picked[layer]])
        if extra > left:
            going.remove(layer)
            continue
        picked[layer] += 1
        left -= extra
        if picked[layer] == len(costs) - 1:
            going.remove(layer)
    return {
        curve.name: int(choice.ranks[i]) or None
        for curve, choice, i in zip(request.curves, choices, picked, strict=True)
    }


@given(st.integers(0, 10**6), st.floats(0.45, 1.0), st.sampled_from(("lowrank", "pivoted")))
@quick
def test_equals_one_step_at_a_time(seed, budget, kind):
    request = AllocationRequest(curves_of(5, seed), budget, kind, 1 + seed % 3)
    choices = [request.choices(curve) for curve in request.curves]
    generator = np.random.default_rng(seed)
    keys = [generator.integers(0, 9, len(c.costs) - 1).astype(np.float64) for c in choices]
    assert climb(request, choices, keys) == step_by_step(request, choices, keys)


@given(st.integers(0, 10**6), st.floats(0.3, 0.99))
@quick
def test_nothing_that_fits_is_left(seed, budget):
    request = AllocationRequest(curves_of(6, seed), budget, "lowrank")
    choices = [request.choices(curve) for curve in request.curves]
    plan = proportional(request, choices, np.random.default_rng(seed).exponential(size=6))
    left = request.weights - sum(request.cost(c, plan[c.name]) for c in request.curves)
    assert left >= 0
    for curve, choice in zip(request.curves, choices, strict=True):
        at = list(choice.ranks).index(plan[curve.name] or 0)
        assert at == len(choice.costs) - 1 or choice.costs[at + 1] - choice.costs[at] > left


def test_proportional_reaches_what_is_wanted():
    request = AllocationRequest(curves_of(4), 0.6, "lowrank")
    choices = [request.choices(curve) for curve in request.curves]
    wanted = np.array([36.0 * 24 / 12, 36.0 * 5, 36.0 * 6, 28.0 * 4])
    plan = proportional(request, choices, wanted)
    for curve, want in zip(request.curves, wanted, strict=True):
        assert request.cost(curve, plan[curve.name]) >= want - sum(curve.shape)


def test_wanting_nothing_gives_the_smallest():
    request = AllocationRequest(curves_of(4), 0.5, "lowrank")
    choices = [request.choices(curve) for curve in request.curves]
    plan = proportional(request, choices, np.array([0.0, 100.0, 100.0, 100.0]))
    assert plan["blocks.0.mix"] == 1
    assert proportional(request, choices, np.zeros(4))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("h.0.mlp.up", "h.1.mlp.up", "h.0.mlp.gate"), [[0, 1], [2]]),
        (("h.0.experts.0.w1", "h.1.experts.3.w1", "h.0.experts.0.w3"), [[0, 1], [2]]),
        (("h.0.experts.up.0", "h.12.experts.up.7"), [[0, 1]]),
        (("0.up", "1.up", "up"), [[0, 1], [2]]),
    ],
)
def test_types_are_names_without_their_numbers(names, expected):
    curve = curves_of(1)[0]
    curves = [LayerCurve(n, curve.shape, curve.loss, curve.spectrum) for n in names]
    assert types_of(curves) == expected


def test_layers_of_two_shapes_are_of_two_types():
    curves = [
        LayerCurve(f"h.{i}.up", c.shape, c.loss, c.spectrum)
        for i, c in enumerate(curves_of(4) + curves_of(2))
    ]
    assert types_of(curves) == [[0, 4], [1, 5], [2], [3]]
    assert sorted(itertools.chain(*types_of(curves))) == list(range(6))
