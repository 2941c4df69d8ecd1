"""The quadratic model of the loss against what a layer really costs."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spectrim.decompositions import DECOMPOSITIONS, decompose_layer
from spectrim.errors import NumericalWarning
from spectrim.linalg.spectrum import tail_energy
from spectrim.linalg.truncated import Factors
from spectrim.planning.predicted import predicted_curve
from spectrim.statistics import Calibration, LayerProblem
from tests.layer_problems import (
    LAYER,
    random_layer,
    random_tokens,
    statistics_from,
    statistics_of,
)
from tests.tolerances import FLOAT64_RELATIVE, KFAC_RELATIVE, LOSS_RELATIVE

METHODS = DECOMPOSITIONS.names()
SHAPES = [(12, 12), (18, 9), (9, 18)]
PRICING = ("input_covariance", "gradient_covariance")


def decomposed(method: str, problem: LayerProblem, **options: object) -> Factors:
    return decompose_layer(method, problem, DECOMPOSITIONS.options(method, options))


def priced_problem(method: str, shape: tuple[int, int], bias: bool) -> LayerProblem:
    weight, offset = random_layer(shape)
    given = offset if bias else None
    names = tuple({*DECOMPOSITIONS.get(method).REQUIRES, *PRICING})
    statistics = statistics_of(random_tokens(weight, given, 256), shape, names)
    return LayerProblem(LAYER, weight, given, statistics)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_curve_is_the_explicit_quadratic_form(method, shape, bias):
    """1/2 tr(C_g E[d d^T]) of the output error d, bias included, summed over the tokens."""
    problem = priced_problem(method, shape, bias)
    tokens = random_tokens(problem.weight, problem.bias, 256)
    factors = decomposed(method, problem)
    curve = predicted_curve(factors, problem.statistics)
    assert curve.shape == (factors.max_rank + 1,)
    c_g = tokens.g.T @ tokens.g / tokens.count
    for rank in range(factors.max_rank + 1):
        out = tokens.x @ factors.weight(rank).T
        given = factors.bias(rank, problem.bias)
        error = (out if given is None else out + given) - tokens.y
        expected = 0.5 * float(torch.einsum("to,op,tp->", error, c_g, error)) / tokens.count
        assert abs(float(curve[rank]) - expected) <= FLOAT64_RELATIVE * float(curve[0])
    assert bool((curve >= 0).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_obd_curve_is_half_its_tail_energy(shape):
    problem = priced_problem("obd", shape, False)
    factors = decomposed("obd", problem, damping=0.0)
    half = 0.5 * tail_energy(factors.spectrum)
    curve = predicted_curve(factors, problem.statistics)
    assert torch.allclose(curve, half, rtol=0, atol=1e-8 * float(half[0]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_other_pair_of_factors_prices_below_obd(method, shape):
    """Of all factors without a bias of their own, OBD's lose least at every rank."""
    problem = priced_problem(method, shape, False)
    factors = decomposed(method, problem)
    if factors.bias_shift is not None:
        pytest.skip("its bias takes over what no rank can")
    best = decomposed("obd", priced_problem("obd", shape, False), damping=0.0)
    allowed = predicted_curve(factors, problem.statistics)
    least = predicted_curve(best, problem.statistics)
    assert bool((least <= allowed + 1e-8 * float(least[0])).all())


def test_an_experts_share_scales_its_curve():
    problem = priced_problem("obd", (9, 9), False)
    statistics = problem.statistics
    factors = decomposed("obd", problem)
    whole = predicted_curve(factors, statistics)
    statistics.calibration.tokens *= 4
    assert statistics.share == 0.25
    assert torch.allclose(predicted_curve(factors, statistics), whole / 4, rtol=LOSS_RELATIVE)


def test_without_gradients_the_curve_is_the_tail_energy():
    problem = priced_problem("svd", (9, 7), False)
    factors = decomposed("svd", problem)
    assert torch.equal(predicted_curve(factors, None), tail_energy(factors.spectrum))
    only_inputs = Calibration({LAYER: LAYER}, {LAYER: 1}, {"input_covariance": {}}, 1)
    curve = predicted_curve(factors, only_inputs.layer(LAYER))
    assert torch.equal(curve, tail_energy(factors.spectrum))


def softmax_layer(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (classes, in) of size `scale`, bias and inputs (tokens, in)."""
    generator = torch.Generator().manual_seed(7)

    def rows(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return scale * rows(10, 8), rows(10), rows(400, 8) @ rows(8, 8) + 1


def softmax_problem(weight: Tensor, bias: Tensor, x: Tensor) -> LayerProblem:
    """With the exact Fisher of labels sampled from the softmax, E[diag p - p p^T]."""
    p = (x @ weight.T + bias).softmax(-1)
    states = {
        "input_covariance": {"sum": x.T @ x},
        "gradient_covariance": {"sum": torch.diag(p.sum(0)) - p.T @ p},
    }
    return LayerProblem(LAYER, weight, bias, statistics_from(states, len(x)))


def relative_kfac_error(scale: float, method: str) -> float:
    """Largest relative difference of prediction and measured divergence over the ranks."""
    weight, bias, x = softmax_layer(scale)
    problem = softmax_problem(weight, bias, x)
    factors = decomposed(method, problem)
    curve = predicted_curve(factors, problem.statistics)
    dense = (x @ weight.T + bias).log_softmax(-1)
    errors = []
    for rank in range(factors.max_rank):
        cut = (x @ factors.weight(rank).T + bias).log_softmax(-1)
        measured = float((dense.exp() * (dense - cut)).sum(-1).mean())
        errors.append(abs(float(curve[rank]) / measured - 1))
    return max(errors)


@pytest.mark.parametrize("method", ["obd", "svd", "svd_llm"])
def test_prediction_approaches_the_measured_divergence(method):
    """Under a softmax K-FAC is exact in the limit of small logits, and nears it linearly."""
    coarse, fine, finest = (relative_kfac_error(s, method) for s in (0.01, 0.001, 0.0001))
    assert fine < KFAC_RELATIVE
    assert fine < 0.2 * coarse
    assert finest < 0.2 * fine


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("damping", "tokens"), [(1e-3, 256), (0.3, 256), (0.0, 256), (0.0, 5)])
def test_orthogonal_factors_are_priced_without_the_statistics(shape, damping, tokens):
    """The same curve as from the covariances, also where the factor of a singular one had to
    be damped by itself."""
    weight, _ = random_layer(shape)
    statistics = statistics_of(random_tokens(weight, None, tokens), shape, PRICING)
    problem = LayerProblem(LAYER, weight, None, statistics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        factors = decomposed("obd", problem, damping=damping)
    assert factors.solved is not None
    plain = predicted_curve(replace(factors, solved=None), statistics)
    curve = predicted_curve(factors, statistics)
    assert torch.allclose(curve, plain, rtol=0, atol=FLOAT64_RELATIVE * float(plain[0]))


@pytest.mark.parametrize("method", ["gfwsvd", "obd_bias", "svd_llm"])
def test_only_metrics_that_are_the_losses_own_price_by_themselves(method):
    assert decomposed(method, priced_problem(method, (9, 18), False)).solved is None
