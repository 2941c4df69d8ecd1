"""D-Rank: the stationary ranks, and moving weights to the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS, AllocationRequest, LayerCurve
from spectrim.allocation.d_rank import Options, _stationary, allocate
from spectrim.errors import InputError
from tests.tolerances import FLOAT64_RELATIVE

QKV = ("q_proj", "k_proj", "v_proj")
quick = settings(max_examples=40, deadline=None, derandomize=True)


def layer(name: str, shape: tuple[int, int], decay: float) -> LayerCurve:
    spectrum = decay ** np.arange(min(shape), dtype=np.float64)
    return LayerCurve(name, shape, np.zeros(min(shape) + 1), spectrum)


def one_type(seed: int, count: int = 5, shape=(96, 64)) -> tuple[LayerCurve, ...]:
    decays = np.random.default_rng(seed).uniform(0.93, 0.99, count)
    return tuple(layer(f"h.{i}.up", shape, float(d)) for i, d in enumerate(decays))


def slow_effective_rank(spectrum) -> float:
    total = sum(float(s) ** 2 for s in spectrum)
    shares = [float(s) ** 2 / total for s in spectrum]
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 0)))


def attention(shapes=((64, 64), (64, 64), (64, 64))) -> tuple[LayerCurve, ...]:
    return tuple(
        layer(f"h.{block}.attn.{name}", shape, 0.95)
        for block in range(2)
        for name, shape in zip(QKV, shapes, strict=True)
    )


def costs(request: AllocationRequest, plan: dict) -> dict[str, int]:
    return {c.name: request.cost(c, plan[c.name]) for c in request.curves}


@given(st.integers(0, 10**6), st.floats(0.2, 0.6))
@quick
def test_stationary_under_the_budget(seed, budget):
    """R / (w k^2) is one multiplier, and no exchange of weights lowers sum R / k."""
    curves = one_type(seed)
    request = AllocationRequest(curves, budget, "lowrank")
    wanted = _stationary(request, curves)
    r = np.array([slow_effective_rank(curve.spectrum) for curve in curves])
    w = float(sum(curves[0].shape))
    k = wanted / w
    multiplier = r / (w * k**2)
    np.testing.assert_allclose(multiplier, multiplier[0], rtol=FLOAT64_RELATIVE)
    assert wanted.sum() == pytest.approx(budget * request.dense_cost, rel=FLOAT64_RELATIVE)
    generator = np.random.default_rng(seed)
    for _ in range(20):
        change = generator.normal(size=len(k))
        moved = k + 0.1 * k.min() * (change - change.mean()) / np.abs(change).max() / 2
        assert (r / moved).sum() >= (r / k).sum()


@given(st.integers(0, 10**6), st.floats(0.2, 0.6), st.sampled_from(("lowrank", "pivoted")))
@quick
def test_ranks_are_the_stationary_ones_rounded(seed, budget, kind):
    curves = one_type(seed)
    request = AllocationRequest(curves, budget, kind)
    wanted = _stationary(request, curves)
    plan = allocate(request, Options())
    for curve, want in zip(curves, wanted, strict=True):
        assert plan[curve.name] is None or request.cost(curve, plan[curve.name] + 1) > want


@pytest.mark.parametrize("budget", [0.3, 0.5])
def test_close_to_the_best_integer_ranks(budget):
    """Against the exact greedy optimum of sum R / k for equal costs."""
    curves = one_type(3)
    request = AllocationRequest(curves, budget, "lowrank")
    r = np.array([slow_effective_rank(curve.spectrum) for curve in curves])
    best = np.ones(len(r))
    for _ in range(request.weights // sum(curves[0].shape) - len(r)):
        best[np.argmax(r / best - r / (best + 1))] += 1
    plan = allocate(request, Options())
    ours = np.array([plan[curve.name] for curve in curves], dtype=float)
    assert ours.sum() == best.sum()
    assert (r / ours).sum() <= (r / best).sum() * 1.005
    even = np.full(len(r), best.sum() / len(r))
    assert (r / ours).sum() < (r / even).sum()


def test_every_type_gets_the_same_share():
    flat = tuple(layer(f"h.{i}.down", (64, 96), 0.999) for i in range(5))
    request = AllocationRequest((*one_type(0), *flat), 0.5, "lowrank")
    spent = costs(request, allocate(request, Options()))
    for kind in ("up", "down"):
        share = sum(v for k, v in spent.items() if k.endswith(kind)) / (5 * 64 * 96)
        assert abs(share - 0.5) < (64 + 96) / (64 * 96)


def test_what_a_dense_layer_cannot_use_goes_to_its_type():
    rich, poor = layer("h.0.up", (32, 32), 0.9999), layer("h.1.up", (32, 32), 0.2)
    request = AllocationRequest((rich, poor), 0.8, "lowrank")
    plan = allocate(request, Options())
    assert plan["h.0.up"] is None
    assert plan["h.1.up"] == (request.weights - 32 * 32) // 64


def test_a_spectrum_of_zeros_counts_as_rank_one():
    dead = LayerCurve("h.9.up", (96, 64), np.zeros(65), np.zeros(64))
    request = AllocationRequest((*one_type(0), dead), 0.4, "lowrank")
    plan = allocate(request, Options())
    assert 1 <= plan["h.9.up"] < min(r for n, r in plan.items() if n != "h.9.up")


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_queries_and_keys_give_to_the_values(beta):
    request = AllocationRequest(attention(), 0.4, "lowrank")
    before = allocate(request, Options())
    after = allocate(request, Options(QKV, beta))
    for name, rank in after.items():
        factor = 1 + 2 * beta if name.endswith("v_proj") else 1 - beta
        assert abs(rank - factor * before[name]) <= 1


def test_grouped_queries_move_weights_not_ranks():
    request = AllocationRequest(attention(((64, 64), (16, 64), (16, 64))), 0.4, "lowrank")
    before = costs(request, allocate(request, Options()))
    after = costs(request, allocate(request, Options(QKV, 0.1)))
    moved = {n: after[n] - before[n] for n in after}
    for block in ("h.0.attn.", "h.1.attn."):
        given_up = -moved[block + "q_proj"] - moved[block + "k_proj"]
        assert given_up > 0
        assert abs(moved[block + "v_proj"] - given_up) < 2 * (64 + 64)
    assert sum(after.values()) <= request.weights


@pytest.mark.parametrize(
    ("rebalance", "message"),
    [
        (("q_proj", "k_proj", "no_such"), "no_such"),
        (("q_proj", "(", "v_proj"), "regular expression"),
        (("0.attn.q_proj", "0.attn.k_proj", "1.attn.v_proj"), "parent"),
    ],
)
def test_expressions_that_do_not_fit_are_explained(rebalance, message):
    request = AllocationRequest(attention(), 0.4, "lowrank")
    with pytest.raises(InputError, match=message):
        allocate(request, Options(rebalance))


@pytest.mark.parametrize("given", [{"rebalance": ["q", "k"]}, {"beta": 1.0}, {"beta": -0.1}])
def test_options_out_of_range(given):
    with pytest.raises(InputError):
        ALLOCATORS.options("d_rank", given)


def test_options_from_a_list():
    options = ALLOCATORS.options("d_rank", {"rebalance": list(QKV), "beta": 0.35})
    assert options == Options(QKV, 0.35)
    assert ALLOCATORS.options("d_rank", {"rebalance": []}) == Options()
