"""What every allocator promises, and that loss_optimal is optimal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS, AllocationRequest, LayerCurve
from spectrim.errors import InputError
from spectrim.layers import LAYERS
from spectrim.statistics import STATISTICS
from tests.tolerances import BUDGET_UNUSED, LOSS_RELATIVE

ALLOCATIONS = ALLOCATORS.names()
KINDS = LAYERS.names()
MULTIPLES = (1, 4, 8)
BUDGETS = (0.45, 0.6, 0.8, 0.95, 1.0)
allocations = pytest.mark.parametrize("allocation", ALLOCATIONS)
kinds = pytest.mark.parametrize("kind", KINDS)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def curve_of(name: str, shape: tuple[int, int], decay: float, scale: float) -> LayerCurve:
    """A spectrum that falls geometrically, its tail energy, and effects of both signs."""
    spectrum = scale * decay ** np.arange(min(shape), dtype=np.float64)
    tails = np.append(np.cumsum((spectrum**2)[::-1])[::-1], 0.0)
    return LayerCurve(
        name, shape, tails, spectrum, spectrum * np.cos(3 * np.arange(min(shape)))
    )


def decaying_curves(count: int, seed: int = 0, width: int = 32) -> tuple[LayerCurve, ...]:
    generator = np.random.default_rng(seed)
    shapes = [(width, width), (2 * width, width), (width, 2 * width), (width // 4, width)]
    return tuple(
        curve_of(
            f"layer{i}",
            shapes[i % len(shapes)],
            float(generator.uniform(0.8, 0.99)),
            float(np.exp(generator.normal())),
        )
        for i in range(count)
    )


def rough_curves(count: int, seed: int, largest: int = 10) -> tuple[LayerCurve, ...]:
    """Losses that are neither convex nor even monotone."""
    generator = np.random.default_rng(seed)
    curves = []
    for i in range(count):
        shape = tuple(int(n) for n in generator.integers(2, largest + 1, 2))
        loss = generator.exponential(size=min(shape) + 1) * generator.integers(1, 30)
        signed = np.sin(loss[1:])
        curves.append(LayerCurve(f"layer{i}", shape, loss, np.ones(min(shape)), signed))
    return tuple(curves)


def allocate(allocation: str, request: AllocationRequest) -> dict[str, int | None]:
    return ALLOCATORS.get(allocation).allocate(request, ALLOCATORS.options(allocation))


def loss_of(request: AllocationRequest, plan: dict[str, int | None]) -> float:
    return sum(0.0 if plan[c.name] is None else c.loss[plan[c.name]] for c in request.curves)


def cost_of(request: AllocationRequest, plan: dict[str, int | None]) -> int:
    return sum(request.cost(curve, plan[curve.name]) for curve in request.curves)


def requested(curves, budget, kind, multiple=1) -> AllocationRequest | None:
    try:
        return AllocationRequest(curves, budget, kind, multiple)
    except InputError:
        return None


def check_plan(request: AllocationRequest, plan: dict[str, int | None]) -> None:
    assert list(plan) == [curve.name for curve in request.curves]
    assert cost_of(request, plan) <= request.weights
    for curve in request.curves:
        rank = plan[curve.name]
        if rank is not None:
            assert 1 <= rank <= min(curve.shape)
            assert rank % request.multiple == 0
            assert request.cost(curve, rank) < curve.dense_cost


@allocations
def test_module_declares_itself(allocation):
    module = ALLOCATORS.get(allocation)
    assert module.__doc__
    assert module.REFERENCE
    assert set(module.REQUIRES) <= set(STATISTICS.names())
    with pytest.raises(InputError, match="no_such_option"):
        ALLOCATORS.options(allocation, {"no_such_option": 1})


@allocations
@kinds
@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_plans_fit(allocation, kind, multiple, budget):
    request = requested(decaying_curves(8), budget, kind, multiple)
    if request is None:
        pytest.skip(f"{kind} layers in units of {multiple} are larger than that")
    check_plan(request, allocate(allocation, request))


@pytest.mark.few(15)
@allocations
@kinds
@given(st.integers(0, 10_000), st.floats(0.02, 1.0), st.sampled_from((1, 2, 3)))
@quick
def test_plans_fit_wherever_a_request_is_possible(allocation, kind, seed, budget, multiple):
    request = requested(rough_curves(5, seed), budget, kind, multiple)
    if request is not None:
        check_plan(request, allocate(allocation, request))


@allocations
@kinds
def test_everything_is_dense_at_budget_one(allocation, kind):
    request = AllocationRequest(decaying_curves(5), 1.0, kind)
    assert set(allocate(allocation, request).values()) == {None}


@allocations
@kinds
def test_single_layer_and_single_row(allocation, kind):
    one = (curve_of("one", (1, 9), 0.9, 1.0), curve_of("two", (16, 16), 0.9, 1.0))
    request = AllocationRequest(one, 0.5, kind)
    check_plan(request, allocate(allocation, request))


@kinds
@pytest.mark.parametrize("budget", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_budget_out_of_range(kind, budget):
    with pytest.raises(InputError, match="budget"):
        AllocationRequest(decaying_curves(2), budget, kind)


@kinds
def test_unreachable_budget_and_bad_multiple(kind):
    with pytest.raises(InputError, match="smallest"):
        AllocationRequest(decaying_curves(2), 0.01, kind, 8)
    with pytest.raises(InputError, match="multiple"):
        AllocationRequest(decaying_curves(2), 0.5, kind, 0)


def test_uniform_keeps_the_same_fraction():
    request = AllocationRequest(decaying_curves(4, width=64), 0.5, "lowrank")
    plan = allocate("uniform", request)
    for curve in request.curves:
        fraction = request.cost(curve, plan[curve.name]) / curve.dense_cost
        assert 0.5 - sum(curve.shape) / curve.dense_cost < fraction <= 0.5


def test_uniform_takes_from_the_others_what_a_coarse_layer_needs():
    curves = (curve_of("coarse", (8, 8), 0.9, 1.0), curve_of("fine", (64, 64), 0.9, 1.0))
    request = AllocationRequest(curves, 0.501, "lowrank", 8)
    plan = allocate("uniform", request)
    assert plan == {"coarse": None, "fine": 8}
    check_plan(request, plan)


@kinds
@pytest.mark.parametrize("multiple", MULTIPLES)
def test_more_budget_never_predicts_more_loss(kind, multiple):
    losses = []
    for budget in np.linspace(0.3, 1.0, 15):
        request = requested(decaying_curves(6, seed=1), float(budget), kind, multiple)
        if request is not None:
            losses.append(loss_of(request, allocate("loss_optimal", request)))
    assert len(losses) > 10
    for more, less in itertools.pairwise(losses):
        assert less <= more * (1 + LOSS_RELATIVE)


def brute_force(request: AllocationRequest) -> float:
    choices = [request.choices(curve) for curve in request.curves]
    best = float("inf")
    for picked in itertools.product(*(range(len(c.costs)) for c in choices)):
        cost = sum(int(c.costs[i]) for c, i in zip(choices, picked, strict=True))
        if cost <= request.weights:
            loss = sum(float(c.losses[i]) for c, i in zip(choices, picked, strict=True))
            best = min(best, loss)
    return best


@kinds
@given(st.integers(0, 10**6), st.floats(0.1, 1.0), st.sampled_from((1, 1, 2)))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_loss_optimal_is_exact_on_rough_curves(kind, seed, budget, multiple):
    request = requested(rough_curves(4, seed), budget, kind, multiple)
    if request is not None:
        plan = allocate("loss_optimal", request)
        check_plan(request, plan)
        assert loss_of(request, plan) <= brute_force(request) * (1 + LOSS_RELATIVE)


@kinds
@given(st.integers(0, 10**6), st.floats(0.3, 0.98))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_loss_optimal_is_never_beaten_by_a_random_plan(kind, seed, budget):
    generator = np.random.default_rng(seed)
    request = AllocationRequest(decaying_curves(8, seed=seed % 97), budget, kind)
    best = loss_of(request, allocate("loss_optimal", request))
    choices = [request.choices(curve) for curve in request.curves]
    for _ in range(20):
        picked = [0] * len(choices)
        left = request.weights - request.smallest_cost
        for g in generator.permutation(len(choices)):
            extra = choices[g].costs - choices[g].costs[0]
            picked[g] = int(generator.choice(np.flatnonzero(extra <= left)))
            left -= int(extra[picked[g]])
        loss = sum(float(c.losses[i]) for c, i in zip(choices, picked, strict=True))
        assert best <= loss * (1 + LOSS_RELATIVE)


@kinds
def test_loss_optimal_is_no_worse_than_every_other(kind):
    request = AllocationRequest(decaying_curves(8, seed=5), 0.6, kind)
    best = loss_of(request, allocate("loss_optimal", request))
    for allocation in ALLOCATIONS:
        assert best <= loss_of(request, allocate(allocation, request)) * (1 + LOSS_RELATIVE)


@kinds
@pytest.mark.parametrize("budget", [0.4, 0.6, 0.8])
def test_forty_layers_spend_the_budget(kind, budget):
    request = AllocationRequest(decaying_curves(40, seed=2, width=64), budget, kind)
    plan = allocate("loss_optimal", request)
    check_plan(request, plan)
    assert cost_of(request, plan) >= (1 - BUDGET_UNUSED) * request.weights


@kinds
def test_layers_that_cannot_be_reduced_stay_dense(kind):
    curves = (curve_of("thin", (1, 40), 0.9, 1.0), *decaying_curves(3))
    request = AllocationRequest(curves, 0.7, kind)
    assert allocate("loss_optimal", request)["thin"] is None
