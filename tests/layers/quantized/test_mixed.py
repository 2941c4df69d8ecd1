"""Bits, low rank and single entries: each part against a dense reference, and all together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spectrim.errors import InputError, NumericalError
from spectrim.layers.quantized import QUANTIZERS
from spectrim.layers.quantized._mixture import MixtureSolver, sparse_residual
from spectrim.layers.quantized.mixed import MixedLinear, Options, solver
from spectrim.linalg.spectrum import tail_energy
from spectrim.statistics import LayerProblem
from tests.layer_problems import LAYER
from tests.layers.quantized.test_gptq import NEEDED, damped, loss, random_problem
from tests.tolerances import FLOAT64_RELATIVE

SHAPE = (24, 40)
PARTS = {"bits": 3, "rank_share": 0.125, "density": 0.02, "group": 16}


def mixed(given: LayerProblem, **options: object) -> MixedLinear:
    return QUANTIZERS.get("mixed").compress(given, QUANTIZERS.options("mixed", options))


def hessian(given: LayerProblem) -> Tensor:
    """The Kronecker product of the damped covariances, of all of vec(W)."""
    return torch.kron(*(damped(given.statistic(name), 1e-2) for name in NEEDED))


def residual(count: int, rest: Tensor, given: LayerProblem) -> Tensor:
    outputs, inputs = (damped(given.statistic(name), 1e-2) for name in NEEDED)
    curvature = torch.outer(outputs.diagonal(), inputs.diagonal())
    return sparse_residual(rest, count, lambda error: outputs @ error @ inputs, curvature)


def test_one_entry_is_the_one_that_lowers_the_loss_most():
    given = random_problem((6, 9))
    rest, whole = given.weight.double(), hessian(given)
    flat = rest.flatten()
    losses = []
    for at in range(len(flat)):
        left = flat.clone()
        left[at] -= (whole[at] @ flat) / whole[at, at]
        losses.append(left @ whole @ left)
    found = (rest - residual(1, rest, given)).flatten()
    expected = min(losses)
    assert abs(found @ whole @ found - expected) <= FLOAT64_RELATIVE * expected
    assert losses.index(expected) == int(residual(1, rest, given).flatten().abs().argmax())


def test_the_values_are_least_squares_on_their_places():
    given = random_problem((6, 9))
    rest, whole = given.weight.double(), hessian(given)
    entries = residual(8, rest, given).flatten()
    at = entries.nonzero().flatten()
    assert len(at) == 8
    expected = torch.linalg.solve(whole[at][:, at], whole[at] @ rest.flatten())
    assert (entries[at] - expected).norm() <= 1e-6 * expected.norm()


def test_entries_beat_the_largest_of_the_residual():
    given = random_problem(SHAPE)
    rest, whole = given.weight.double(), hessian(given)
    largest = torch.zeros_like(rest).flatten()
    at = rest.flatten().abs().topk(40).indices
    largest[at] = torch.linalg.solve(whole[at][:, at], whole[at] @ rest.flatten())
    found, other = (
        float(e @ whole @ e)
        for e in ((rest - residual(40, rest, given)).flatten(), rest.flatten() - largest)
    )
    assert found < other


def test_rank_alone_in_eight_bits_is_the_weighted_svd():
    given = random_problem(SHAPE)
    layer = mixed(given, bits=0, rank_share=0.25, factor_bits=8, group=8, damping=0.01)
    factors = MixtureSolver(given, 0.01)._svd(given.weight.double())
    statistics = {name: damped(given.statistic(name), 1e-2) for name in NEEDED}
    found = loss(replace(given, statistics=statistics), layer)
    best = float(tail_energy(factors.spectrum)[6])
    assert best <= found <= 1.02 * best


def test_factors_rounded_in_their_metric_lose_less_than_rounded_to_nearest():
    given = random_problem((48, 72))
    layer = mixed(given, bits=0, rank_share=0.5, factor_bits=3, rounds=0)
    left, right = MixtureSolver(given, 0.01)._svd(given.weight.double()).truncated(24)
    nearest = [
        QUANTIZERS.get("rtn").compress(
            LayerProblem(LAYER, factor.float(), None, None),
            QUANTIZERS.options("rtn", {"bits": 3, "group": 64}),
        )
        for factor in (left.T, right)
    ]
    weight = nearest[0].dense()[0].T @ nearest[1].dense()[0]
    error = given.weight.double() - weight
    outputs, inputs = map(given.statistic, NEEDED)
    assert loss(given, layer) < 0.8 * float(((outputs @ error) * (error @ inputs)).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_every_part_and_refitting_lower_the_loss(seed):
    given = random_problem((48, 72), seed)
    statistics = {name: damped(given.statistic(name), 1e-2) for name in NEEDED}
    judge = replace(given, statistics=statistics)
    solve = solver(given)
    parts = [
        {"bits": 2, "rounds": 0},
        {"bits": 2, "rank_share": 0.125, "rounds": 0},
        {"bits": 2, "rank_share": 0.125, "density": 0.02, "rounds": 0},
        {"bits": 2, "rank_share": 0.125, "density": 0.02, "rounds": 2},
    ]
    losses = [loss(judge, solve(Options(**each))) for each in parts]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[-2]


def test_bits_alone_are_those_of_gptq_on_a_centered_grid():
    given = random_problem(SHAPE)
    options = {"bits": 3, "group": 16}
    expected = QUANTIZERS.get("gptq").compress(
        given, QUANTIZERS.options("gptq", options | {"scheme": "centered"})
    )
    found = mixed(given, **options).dense()[0]
    assert (found - expected.dense()[0]).norm() <= 1e-6 * expected.dense()[0].norm()


def test_shared_work_changes_nothing():
    given = random_problem(SHAPE)
    solve = solver(given)
    for options in (Options(**PARTS, rounds=0), Options(**(PARTS | {"bits": 0}))):
        solve(replace(options, density=0.0))
        again = solver(given)(options).state_dict()
        assert all(torch.equal(t, again[n]) for n, t in solve(options).state_dict().items())


def test_one_sided_rounding_is_worse():
    given = random_problem((48, 72))
    both, one = (loss(given, mixed(given, bits=3, two_sided=s)) for s in (True, False))
    assert both < one


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("columns", 40, "outside"),
        ("columns", -1, "outside"),
        ("counts", 30, "add up"),
        ("values", 0x7C00, "values hold"),
        ("left_scales", 0x7C00, "left_scales hold"),
    ],
)
def test_wrong_tensors_are_named(name, value, what):
    layer = mixed(random_problem(SHAPE), **PARTS)
    assert layer.validate() is None
    getattr(layer, name).view(-1)[2] = value
    assert what in layer.validate()


def test_a_place_that_is_named_twice():
    layer = mixed(random_problem(SHAPE), **PARTS)
    row = int(layer.counts.argmax())
    start = int(layer.counts[:row].sum())
    layer.columns[start + 1] = layer.columns[start]
    assert "twice" in layer.validate()


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 1},
        {"bits": 0},
        {"rank_share": 1.5},
        {"density": -0.1},
        {"factor_bits": 16},
        {"group": 0},
        {"rounds": -1},
        {"damping": 2},
    ],
    ids=str,
)
def test_options_that_do_not_exist(options):
    with pytest.raises(InputError):
        QUANTIZERS.options("mixed", options)


@pytest.mark.parametrize("name", NEEDED)
def test_covariances_that_are_not_finite(name):
    given = random_problem(SHAPE)
    given.statistic(name)[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=f"{name.replace('_', ' ')} of {LAYER}"):
        mixed(given)


def test_wide_layers_have_wider_places():
    options, wide = Options(bits=0, density=1e-4), (2, 40_000)
    assert MixedLinear.empty(wide, False, options).columns.dtype == torch.int32
    assert MixedLinear.cost(wide, options, 2) == 2 * 8 + 4 * (8 + 2)
