"""Signed effects that cancel: against the rule taken literally, and from a real gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS, AllocationRequest, LayerCurve
from spectrim.errors import InputError
from spectrim.layers import layer_class
from spectrim.models.linear import get_weight
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.plan import decompose, plan
from spectrim.planning import Decomposition
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer
from tests.tolerances import FLOAT64_RELATIVE

ZERO_SUM = ALLOCATORS.get("zs_svd")
OPTIONS = ALLOCATORS.options("zs_svd")


def curve_of(name: str, signed: list[float] | np.ndarray, width: int = 0) -> LayerCurve:
    count = len(signed)
    loss = np.linspace(1.0, 0.0, count + 1)
    shape = (count, width or count)
    return LayerCurve(name, shape, loss, np.ones(count), np.array(signed, dtype=np.float64))


def published(request: AllocationRequest) -> dict[str, int | None]:
    """The rule, once more, by looking through all layers for every single component."""
    cost = layer_class(request.layer).cost
    ranks = {c.name: len(c.first_order_effects) for c in request.curves}
    total = 0.0

    def weights() -> int:
        return sum(min(c.dense_cost, cost(*c.shape, ranks[c.name])) for c in request.curves)

    while weights() > request.weights:
        last = {
            c.name: c.first_order_effects[ranks[c.name] - 1]
            for c in request.curves
            if ranks[c.name] > 1 and cost(*c.shape, 1) < c.dense_cost
        }
        wanted = [n for n, e in last.items() if (e >= 0) == (total <= 0)] or list(last)
        name = min(wanted, key=lambda n: abs(last[n]))
        total += last[name]
        ranks[name] -= 1
    return {
        c.name: ranks[c.name] if cost(*c.shape, ranks[c.name]) < c.dense_cost else None
        for c in request.curves
    }


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
@given(st.integers(0, 10**6), st.floats(0.3, 1.0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_the_rule_one_component_at_a_time(kind, seed, budget):
    generator = np.random.default_rng(seed)
    curves = tuple(
        curve_of(f"layer{i}", generator.normal(size=n), n + int(generator.integers(0, 9)))
        for i, n in enumerate(generator.integers(4, 14, 5).tolist())
    )
    request = AllocationRequest(curves, budget, kind)
    assert ZERO_SUM.allocate(request, OPTIONS) == published(request)


def test_effects_cancel():
    """Dropping only what lowers the loss would take more from `down`; the sum says stop."""
    up = curve_of("up", np.full(40, 0.1))
    down = curve_of("down", np.full(40, -0.1))
    ranks = ZERO_SUM.allocate(AllocationRequest((up, down), 0.5, "pivoted"), OPTIONS)
    assert abs(ranks["up"] - ranks["down"]) <= 1


def test_what_does_not_matter_goes_first():
    still, loud = curve_of("still", np.full(20, 1e-6)), curve_of("loud", np.full(20, 1.0))
    ranks = ZERO_SUM.allocate(AllocationRequest((still, loud), 0.7, "pivoted"), OPTIONS)
    assert ranks["loud"] is None
    assert ranks["still"] < 10


def test_several_at_a_time_have_the_sum_of_their_effects():
    """In pairs `mixed` has no effect at all, and goes before `small`."""
    mixed = curve_of("mixed", [1.0, -1.0] * 8)
    small = curve_of("small", [0.1] * 16)
    request = AllocationRequest((mixed, small), 0.75, "pivoted", 2)
    ranks = ZERO_SUM.allocate(request, OPTIONS)
    assert ranks["mixed"] < 16
    assert ranks["small"] is None


def test_curves_without_effects_are_an_error():
    curve = LayerCurve("plain", (8, 8), np.linspace(1, 0, 9), np.ones(8))
    with pytest.raises(InputError, match="mean_gradient"):
        ZERO_SUM.allocate(AllocationRequest((curve,), 0.5, "pivoted"), OPTIONS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_all_effects_together_are_the_gradients_product_with_the_weight(name, tmp_path):
    """-sum_i left_i^T G right_i = -<G, W>, and the effects come back from a file.

    Of float64 weights, whose factors are kept in float64.
    """
    recipe = small_recipe(
        text_file(tmp_path / "text.txt"), method="svd_llm", allocation="zs_svd"
    )
    model = TINY_MODELS[name]().double()
    calibration = calibrate(model, tiny_tokenizer(), recipe)
    decomposition = decompose(model, calibration, recipe)
    assert set(decomposition.first_order_effects) == set(decomposition.shapes)
    for layer, effects in decomposition.first_order_effects.items():
        statistics = calibration.layer(layer)
        weight = get_weight(model.get_submodule(layer)).detach().double()
        expected = -statistics.share * (statistics["mean_gradient"] * weight).sum()
        scale = float(effects.abs().sum())
        assert abs(float(effects.sum() - expected)) <= FLOAT64_RELATIVE * scale
    decomposition.save(tmp_path / "factors.safetensors")
    again = Decomposition.load(tmp_path / "factors.safetensors")
    assert again.first_order_effects.keys() == decomposition.first_order_effects.keys()
    assert all(
        torch.equal(again.first_order_effects[n], e)
        for n, e in decomposition.first_order_effects.items()
    )
    assert plan(again, recipe) == plan(decomposition, recipe)
    assert plan(again, recipe).kept <= recipe.budget


def test_other_allocations_do_not_pay_for_it(tmp_path):
    recipe = small_recipe(text_file(tmp_path / "text.txt"), method="svd_llm")
    calibration = calibrate(tiny_llama(), tiny_tokenizer(), recipe)
    assert "mean_gradient" not in calibration.states
    assert decompose(tiny_llama(), calibration, recipe).first_order_effects == {}
