"""Factors rounded in their metric: what each matrix is rounded with, and that it pays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.layers import layer_class
from spectrim.layers.quantized import QUANTIZERS
from spectrim.linalg.metric import CovarianceMetric
from spectrim.linalg.truncated import weighted_svd
from spectrim.planning.factor_rounding import round_factors
from spectrim.statistics import LayerProblem
from tests.layers.quantized.test_gptq import NEEDED, random_problem
from tests.tolerances import FLOAT64_RELATIVE

RANK = 20


def factored(given: LayerProblem, kind: str):
    outputs, inputs = (CovarianceMetric(given.statistic(n), 1e-2) for n in NEEDED)
    factors = weighted_svd(given.weight.double(), outputs, inputs)
    return layer_class(kind).from_factors(*factors.truncated(RANK), None)


def rounded(layer, given: LayerProblem, name: str, **options: object):
    """The layer with the rounded values in its place, float64."""
    chosen = name, QUANTIZERS.options(name, options)
    statistics = {n: given.statistic(n) for n in NEEDED}
    for child, made in round_factors("a layer", layer, statistics, chosen).items():
        layer.get_submodule(child).weight.data = made.dense()[0]
    return layer


def loss(given: LayerProblem, error: Tensor) -> float:
    outputs, inputs = map(given.statistic, NEEDED)
    return float(((outputs @ error) * (error @ inputs)).sum())


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
@pytest.mark.parametrize("bits", [3, 4])
def test_loses_less_than_rounding_to_nearest(kind, bits):
    given = random_problem((48, 72))
    before = factored(given, kind).dense()[0]
    losses = {}
    for name in ("rtn", "gptq"):
        layer = rounded(factored(given, kind), given, name, bits=bits, group=16)
        losses[name] = loss(given, layer.dense()[0] - before)
    assert losses["gptq"] < 0.8 * losses["rtn"]


def test_the_left_factor_is_fitted_to_the_rounded_right_one():
    given = random_problem((48, 72))
    before = factored(given, "lowrank").dense()[0]
    layer = factored(given, "lowrank")
    options = {"bits": 2, "group": 16}
    chosen = "gptq", QUANTIZERS.options("gptq", options)
    statistics = {n: given.statistic(n) for n in NEEDED}
    made = round_factors("a layer", layer, statistics, chosen)
    right, inputs = made["right"].dense()[0], given.statistic(NEEDED[1])
    best = torch.linalg.solve(right @ inputs @ right.T, right @ inputs @ before.T).T
    problem = LayerProblem(
        "left",
        best.float(),
        None,
        {"input_covariance": right @ inputs @ right.T, NEEDED[0]: given.statistic(NEEDED[0])},
    )
    expected = QUANTIZERS.get("gptq").compress(problem, chosen[1]).dense()[0]
    assert (made["left"].dense()[0] - expected).norm() <= 1e-3 * expected.norm()


def test_rounding_to_nearest_is_as_it_was():
    given = random_problem((48, 72))
    layer = factored(given, "pivoted")
    options = QUANTIZERS.options("rtn", {"bits": 4, "group": 16})
    for name, made in round_factors("a layer", layer, None, ("rtn", options)).items():
        problem = LayerProblem(name, layer.get_submodule(name).weight.detach(), None, None)
        expected = QUANTIZERS.get("rtn").compress(problem, options).dense()[0]
        assert (made.dense()[0] - expected).norm() <= FLOAT64_RELATIVE * expected.norm()


def test_a_full_pivoted_layer_has_no_coefficients():
    given = random_problem((12, 20))
    layer = layer_class("pivoted").from_factors(
        torch.eye(12).double(), given.weight.double(), torch.ones(12)
    )
    statistics = {n: given.statistic(n) for n in NEEDED}
    chosen = "gptq", QUANTIZERS.options("gptq", {"bits": 8, "group": 4})
    made = round_factors("a layer", layer, statistics, chosen)
    assert made["coefficients"].out_features == 0
    assert torch.equal(made["pivots"].bias, layer.pivots.bias)
    assert isinstance(layer.pivots, nn.Linear)


def test_other_layers_have_no_metric():
    given = random_problem((12, 20))
    layer = layer_class("sparse_plus_lowrank").from_factors(
        torch.eye(12).double(), given.weight.double(), None
    )
    with pytest.raises(InputError, match="--layer lowrank"):
        round_factors("a layer", layer, {}, ("gptq", QUANTIZERS.options("gptq", {})))
