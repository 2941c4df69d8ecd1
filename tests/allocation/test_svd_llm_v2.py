"""SVD-LLM V2: removed fractions against the formula, and the sign of the logarithm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS, AllocationRequest, LayerCurve
from spectrim.allocation.svd_llm_v2 import Options, allocate, removed_fractions
from spectrim.errors import InputError
from tests.tolerances import FLOAT64_RELATIVE

quick = settings(max_examples=40, deadline=None, derandomize=True)


def layer(name: str, shape: tuple[int, int], decay: float, scale: float) -> LayerCurve:
    spectrum = scale * decay ** np.arange(min(shape), dtype=np.float64)
    return LayerCurve(name, shape, np.zeros(min(shape) + 1), spectrum)


def two_types(seed: int) -> tuple[LayerCurve, ...]:
    generator = np.random.default_rng(seed)
    return tuple(
        layer(
            f"h.{block}.{name}",
            shape,
            float(generator.uniform(0.95, 0.99)),
            float(np.exp(generator.uniform(-1, 1))),
        )
        for block in range(4)
        for name, shape in (("up", (96, 64)), ("down", (64, 96)))
    )


def slow_fractions(curves, removed: float, tokens: int) -> dict[str, float]:
    """Straight from the paper, where every loss is above e."""
    fractions = {}
    for kind in ("up", "down"):
        losses = {}
        for curve in curves:
            if curve.name.endswith(kind):
                out, inner = curve.shape
                rank = math.floor((1 - removed) * out * inner / (out + inner))
                tail = sum(float(s) ** 2 for s in curve.spectrum[rank:])
                losses[curve.name] = 1 / math.log(math.sqrt(tokens * tail))
        for name, share in losses.items():
            fractions[name] = len(losses) * removed * share / sum(losses.values())
    return fractions


@given(st.integers(0, 10**6), st.floats(0.3, 0.7))
@quick
def test_equals_the_formula(seed, budget):
    """Tokens so many that every loss is far above e: no other unit, little spread."""
    curves, tokens = two_types(seed), 10**12
    request = AllocationRequest(curves, budget, "lowrank")
    plan = allocate(request, Options(tokens))
    for name, fraction in slow_fractions(curves, 1 - budget, tokens).items():
        kept = 160 * plan[name] / (64 * 96) if plan[name] else 1.0
        assert kept > 1 - fraction - 160 / (64 * 96)
        assert kept < 1 - fraction + 2 * 160 / (64 * 96)


def test_the_formula_by_hand():
    losses = np.exp([2.0, 4.0, 4.0])
    np.testing.assert_allclose(removed_fractions(losses, 0.4), [0.6, 0.3, 0.3])


@given(st.integers(0, 10**6), st.floats(0.0, 0.3))
@quick
def test_fractions_average_to_what_is_removed(seed, removed):
    losses = np.exp(np.random.default_rng(seed).uniform(2, 4, 6))
    fractions = removed_fractions(losses, removed)
    assert fractions.mean() == pytest.approx(removed, rel=FLOAT64_RELATIVE)
    assert (np.diff(fractions[np.argsort(losses)]) <= 1e-12).all()


@pytest.mark.parametrize("unit", [1e-6, 0.3, 1.0, 2.0])
def test_losses_below_e_are_taken_in_their_own_unit(unit):
    """Neither the sign of the logarithm nor its pole at one shows: only ratios count."""
    losses = unit * np.array([1.0, 3.0, 9.0])
    shares = 1 / (1 + np.log([1.0, 3.0, 9.0]))
    expected = 3 * 0.2 * shares / shares.sum()
    np.testing.assert_allclose(removed_fractions(losses, 0.2), expected)


def test_continuous_where_the_unit_changes():
    below, above = (
        removed_fractions(np.e * f * np.array([1.0, 5.0]), 0.3) for f in (1 - 1e-9, 1 + 1e-9)
    )
    np.testing.assert_allclose(below, above, rtol=1e-7)


def test_no_loss_at_all():
    np.testing.assert_allclose(removed_fractions(np.zeros(3), 0.4), [0.4] * 3)
    fractions = removed_fractions(np.array([0.0, 5.0, 5.0]), 0.4)
    assert fractions[0] == 1.0
    assert fractions[1] == fractions[2] < 0.1


def test_a_layer_without_loss_gives_way_to_the_others():
    dead = LayerCurve("h.9.up", (96, 64), np.zeros(65), np.zeros(64))
    request = AllocationRequest((*two_types(0), dead), 0.6, "lowrank")
    plan = allocate(request, Options())
    assert plan["h.9.up"] == 1
    spent = sum(request.cost(c, plan[c.name]) for c in request.curves)
    assert spent > request.weights - 160


def test_types_are_separate():
    """A type with a thousandfold loss keeps what it kept."""
    curves = two_types(5)
    louder = tuple(
        LayerCurve(c.name, c.shape, c.loss, c.spectrum * (1000 if c.name.endswith("up") else 1))
        for c in curves
    )
    plans = [
        allocate(AllocationRequest(c, 0.5, "lowrank"), Options()) for c in (curves, louder)
    ]
    for name in plans[0]:
        if name.endswith("down"):
            assert abs(plans[0][name] - plans[1][name]) <= 1


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_more_loss_keeps_more(kind):
    curves = tuple(layer(f"h.{i}.up", (64, 64), 0.97, 2.0**i) for i in range(5))
    plan = allocate(AllocationRequest(curves, 0.4, kind), Options())
    ranks = list(plan.values())
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


def test_tokens_out_of_range():
    with pytest.raises(InputError, match="tokens"):
        ALLOCATORS.options("svd_llm_v2", {"tokens": 0})
