"""Plans from decompositions: totals, corrections, targets, curves, files."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS
from spectrim.errors import CheckpointError, InputError
from spectrim.layers import LAYERS, layer_class
from spectrim.linalg.spectrum import tail_energy
from spectrim.linalg.truncated import Factors
from spectrim.planning import (
    Decomposition,
    JointCorrection,
    LayerPlan,
    Plan,
    load_plan,
    make_plan,
    plan_for_loss,
    save_plan,
    size_curve,
)
from spectrim.planning.planner import DEFAULT_BUDGETS
from spectrim.planning.settings import PlanningSettings
from spectrim.runtime.files import write_tensors
from tests.layer_problems import random_layer
from tests.tolerances import LOSS_RELATIVE

SHAPES = {"a": (16, 16), "b": (40, 16), "c": (16, 40), "d": (24, 24)}
PAIRS = ((0.01, 0.012), (0.1, 0.15), (1.0, 1.3))
quick = settings(max_examples=80, deadline=None, derandomize=True)


def decomposition(**changes: object) -> Decomposition:
    factors, curves, signed = {}, {}, {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        weight, _ = random_layer(shape, seed)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        offset = torch.ones(len(s)).double() if name == "b" else None
        factors[name] = Factors(u * s, v, s, offset)
        curves[name] = tail_energy(s) / 100
        signed[name] = (s**2).sin() / 100
    return Decomposition(
        "svd",
        SHAPES,
        factors,
        curves,
        provenance={"x": 1},
        first_order_effects=signed,
        **changes,
    )


def settings_of(**changes: object) -> PlanningSettings:
    return PlanningSettings(**{"layer": "lowrank", **changes})


@pytest.mark.parametrize("allocation", ALLOCATORS.names())
@pytest.mark.parametrize("kind", LAYERS.names())
@pytest.mark.parametrize("budget", [0.4, 0.8, 1.0])
def test_a_plan_says_what_it_costs(allocation, kind, budget, tmp_path):
    whole = decomposition()
    plan = make_plan(whole, settings_of(allocation=allocation, layer=kind, budget=budget))
    assert list(plan.layers) == list(SHAPES)
    spent = sum(
        SHAPES[name][0] * SHAPES[name][1]
        if layer.rank is None
        else layer_class(kind).cost(*SHAPES[name], layer.rank)
        for name, layer in plan.layers.items()
    )
    assert plan.kept == spent / whole.weights <= budget
    expected = sum(float(whole.curves[name][rank]) for name, rank in plan.ranks.items())
    if layer_class(kind).LOSSLESS:
        assert plan.predicted_loss == pytest.approx(expected, rel=LOSS_RELATIVE)
    else:
        assert plan.predicted_loss is None
    assert (plan.method, plan.allocation, plan.layer) == ("svd", allocation, kind)
    assert plan.provenance == {"x": 1}
    save_plan(plan, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == plan


def test_curves_in_their_own_units_promise_no_loss():
    plan = make_plan(decomposition(units="own"), settings_of(budget=0.5))
    assert plan.predicted_loss is None
    assert size_curve(decomposition(units="own"), settings_of()) == []
    with pytest.raises(InputError, match="nats"):
        plan_for_loss(decomposition(units="own"), settings_of(), 0.1)


def test_a_kind_that_is_not_lossless_promises_no_loss():
    chosen = settings_of(layer="sparse_dictionary", layer_options={"rounds": 3})
    assert make_plan(decomposition(), chosen).layer_options == {"rounds": 3}
    assert size_curve(decomposition(), chosen) == []
    with pytest.raises(InputError, match="'sparse_dictionary' have no predicted loss"):
        plan_for_loss(decomposition(), chosen, 0.1)


@pytest.mark.parametrize("kind", [k for k in LAYERS.names() if layer_class(k).LOSSLESS])
def test_size_curve_falls(kind):
    points = size_curve(decomposition(), settings_of(layer=kind))
    assert [p.budget for p in points] == sorted(p.budget for p in points)
    assert points[-1].predicted_loss == 0.0
    assert len(points) == len(DEFAULT_BUDGETS)
    for low, high in itertools.pairwise(points):
        assert high.predicted_loss <= low.predicted_loss * (1 + LOSS_RELATIVE)
        assert low.kept <= low.budget


@pytest.mark.few(48)
@pytest.mark.parametrize("pairs", [(), PAIRS], ids=["plain", "corrected"])
@pytest.mark.parametrize("allocation", ALLOCATORS.names())
@pytest.mark.parametrize("target", [1e-9, 1e-3, 0.02, 0.1, 0.5, 1e6])
def test_plan_for_loss_is_within_its_target(allocation, target, pairs):
    whole = decomposition(correction=JointCorrection(pairs))
    plan = plan_for_loss(whole, settings_of(allocation=allocation), target)
    assert plan.predicted_loss <= target
    if allocation == "loss_optimal" and plan.budget > 0.15:
        smaller = make_plan(whole, settings_of(budget=plan.budget - 0.01))
        assert smaller.predicted_loss > target


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_a_target_that_is_not_positive(target):
    with pytest.raises(InputError, match="target"):
        plan_for_loss(decomposition(), settings_of(), target)


@pytest.mark.parametrize("budget", [1e-6, 0.05])
def test_a_budget_that_cannot_be_met(budget):
    with pytest.raises(InputError, match="smallest"):
        make_plan(decomposition(), settings_of(budget=budget, rank_multiple=8))


# --- joint correction ----------------------------------------------------------------


def sensible_pairs(steps: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Summed and measured losses that both rise."""
    summed, measured, pairs = 1e-3, 1e-3, []
    for a, b in steps:
        summed, measured = summed * a, measured * b
        pairs.append((summed, measured))
    return tuple(pairs)


rising = st.lists(st.tuples(st.floats(1.05, 20), st.floats(1.0, 30)), max_size=5)


@given(rising, st.lists(st.floats(1e-9, 1e6), min_size=2, max_size=6))
@quick
def test_correction_rises_with_the_summed_loss(steps, losses):
    correction = JointCorrection(sensible_pairs(steps))
    corrected = [correction(loss) for loss in sorted(losses)]
    assert all(np.isfinite(corrected))
    for low, high in itertools.pairwise(corrected):
        assert low <= high * (1 + LOSS_RELATIVE)


@given(rising.filter(bool))
@quick
def test_correction_returns_the_measured_points(steps):
    pairs = sensible_pairs(steps)
    for summed, measured in pairs:
        assert JointCorrection(pairs)(summed) == pytest.approx(measured, rel=1e-6)


@given(st.floats(0, 1e6))
@quick
def test_correction_without_pairs_is_the_identity(loss):
    assert JointCorrection()(loss) == loss


def test_correction_outside_the_pairs():
    one = JointCorrection(((0.1, 0.15),))
    assert [one(x) for x in (0.01, 0.1, 10.0)] == pytest.approx([0.015, 0.15, 15.0])
    many = JointCorrection(PAIRS)
    assert many(0.001) == pytest.approx(0.0012)
    assert many(10.0) > many(1.0)
    for pairs in ((), PAIRS):
        assert JointCorrection(pairs)(0.0) == 0.0
        assert JointCorrection(pairs)(-1.0) == 0.0


# --- decompositions on disk ----------------------------------------------------------


def test_decomposition_round_trip_is_exact(tmp_path):
    whole = decomposition(correction=JointCorrection(PAIRS), units="own")
    whole.save(tmp_path / "d")
    again = Decomposition.load(tmp_path / "d")
    assert (again.method, again.shapes, again.units, again.correction, again.provenance) == (
        whole.method, whole.shapes, whole.units, whole.correction, whole.provenance,
    )  # fmt: skip
    for name in SHAPES:
        assert torch.equal(again.curves[name], whole.curves[name])
        for field in ("left", "right", "spectrum"):
            assert torch.equal(
                getattr(again.factors[name], field), getattr(whole.factors[name], field)
            )
    assert torch.equal(again.factors["b"].bias_shift, whole.factors["b"].bias_shift)
    assert again.factors["a"].bias_shift is None
    assert make_plan(again, settings_of(budget=0.5)) == make_plan(
        whole, settings_of(budget=0.5)
    )


def test_damaged_and_foreign_decompositions(tmp_path):
    with pytest.raises(InputError):
        Decomposition.load(tmp_path / "none")
    decomposition().save(tmp_path / "d")
    (tmp_path / "cut").write_bytes((tmp_path / "d").read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        Decomposition.load(tmp_path / "cut")
    for metadata in ({}, [], {"shapes": {"a": 3}}, {"shapes": {"a": [1, 2]}}, {"shapes": []}):
        write_tensors(tmp_path / "foreign", {"x": torch.ones(1)}, metadata)
        with pytest.raises(CheckpointError):
            Decomposition.load(tmp_path / "foreign")


def test_plans_and_curves_are_short_in_a_notebook():
    chosen = make_plan(decomposition(), settings_of(budget=0.5))
    line = repr(chosen)
    assert re.fullmatch(r"Plan\(\w+, \d+% kept, [+-][\d.e-]+ nats, \d+ of \d+ layers\)", line)
    html = chosen._repr_html_()
    assert html.count("<tr>") == 1 + len(chosen.layers)
    curve = size_curve(decomposition(), settings_of())
    assert len(repr(curve)) < 100
    assert curve._repr_html_().count("<tr>") == 1 + len(curve)
    assert len(repr(decomposition())) < 100


def test_names_are_escaped_in_a_notebook():
    layer = LayerPlan((4, 4), None)
    made = Plan("<b>", "a", "l", 0.5, 0.5, None, {"<i>x</i>": layer})
    html = made._repr_html_()
    assert "<b>" not in html
    assert "<i>" not in html
