"""Curves corrected by measurements."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spectrim.linalg.truncated import Factors
from spectrim.planning import Decomposition, JointCorrection
from spectrim.planning.measured import _FLOOR, _ascending, probe_layers, rescale
from spectrim.planning.settings import PlanningSettings
from tests.tolerances import LOSS_RELATIVE

RISES = st.lists(st.floats(0, 10), min_size=3, max_size=12)
MEASURED = st.dictionaries(st.integers(0, 20), st.floats(-1e-3, 50), max_size=4)


def curve_from(rises: list[float]) -> torch.Tensor:
    """Non-increasing, zero at the last rank."""
    steps = torch.tensor([*rises, 0.0], dtype=torch.float64)
    return steps.flip(0).cumsum(0).flip(0)


@given(RISES, MEASURED)
@example([0.0, 0.0, 5e-324], {2: 1.0})
@settings(max_examples=150, deadline=None)
def test_a_corrected_curve_never_rises(rises, measured):
    curve = curve_from(rises)
    at = {rank: loss for rank, loss in measured.items() if rank < len(curve)}
    corrected = rescale(curve, at)
    assert corrected.shape == curve.shape
    assert bool((corrected.diff() <= 0).all())
    assert bool((corrected >= 0).all())


def test_it_passes_through_measurements_that_descend():
    curve = curve_from([4.0, 2.0, 1.0, 0.5, 0.25])
    for measured in ({1: 2.5, 3: 1.5}, {2: 0.01}, {1: 9.0, 2: 3.0, 4: 0.1}):
        corrected = rescale(curve, measured)
        for rank, loss in measured.items():
            assert float(corrected[rank]) == pytest.approx(loss, rel=LOSS_RELATIVE)


def test_outside_the_measurements_the_ratio_is_kept():
    curve = curve_from([4.0, 2.0, 1.0, 0.5, 0.25])
    corrected = rescale(curve, {1: 2 * float(curve[1]), 3: 3 * float(curve[3])})
    assert float(corrected[0]) == pytest.approx(2 * float(curve[0]))
    assert float(corrected[4]) == pytest.approx(3 * float(curve[4]))
    assert float(corrected[5]) == 0


def test_a_measurement_without_loss_counts_as_the_floor():
    curve = curve_from([4.0, 2.0, 1.0])
    assert float(rescale(curve, {1: -1e-9})[1]) == pytest.approx(_FLOOR)


def test_a_curve_of_zeros_stays():
    curve = torch.zeros(5, dtype=torch.float64)
    assert torch.equal(rescale(curve, {2: 0.3}), curve)
    assert torch.equal(rescale(curve_from([1.0, 2.0]), {}), curve_from([1.0, 2.0]))


class Scripted:
    """A probe that answers twice the predicted loss, and records what it was asked."""

    def __init__(self, decomposition: Decomposition):
        self.curves = decomposition.curves
        self.asked: dict[str, list[int]] = {}

    def divergence(self, factors, ranks):
        [(name, rank)] = ranks.items()
        self.asked.setdefault(name, []).append(rank)
        return 2 * float(self.curves[name][rank])


def some_decomposition(layers: int = 3, size: int = 12) -> Decomposition:
    generator = torch.Generator().manual_seed(0)
    names = [f"layer{number}" for number in range(layers)]
    factors, curves = {}, {}
    for number, name in enumerate(names):
        left = torch.randn(size, size, generator=generator, dtype=torch.float64)
        spectrum = torch.linspace(1, 0.1, size, dtype=torch.float64) * (number + 1)
        factors[name] = Factors(left, left.T.contiguous(), spectrum)
        curves[name] = curve_from((spectrum**2).tolist())
    shapes = dict.fromkeys(names, (size, size))
    return Decomposition("svd", shapes, factors, curves)


def test_every_layer_is_measured_at_ranks_below_the_full_one():
    decomposition = some_decomposition()
    probe = Scripted(decomposition)
    corrected = probe_layers(decomposition, probe, PlanningSettings())
    assert set(probe.asked) == set(decomposition.shapes)
    assert all(1 <= rank < 12 for ranks in probe.asked.values() for rank in ranks)
    for name, curve in decomposition.curves.items():
        assert torch.allclose(corrected.curves[name], 2 * curve, rtol=LOSS_RELATIVE)
    assert corrected.factors is decomposition.factors


def test_plans_measured_together_are_put_in_order():
    pairs = _ascending([(3.0, 2.0), (1.0, 1.5), (2.0, 1.0)])
    assert pairs == ((1.0, 1.5), (2.0, 1.5), (3.0, 2.0))
    correction = JointCorrection(pairs)
    assert [correction(x) for x in (1.0, 2.0, 3.0)] == pytest.approx([1.5, 1.5, 2.0])
