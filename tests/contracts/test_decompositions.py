"""What every decomposition promises, and what each known one is equal to."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spectrim.decompositions import DECOMPOSITIONS, decompose_layer
from spectrim.errors import InputError, NumericalError, NumericalWarning
from spectrim.linalg.kronecker import rank_one_kronecker
from spectrim.linalg.truncated import Factors
from spectrim.statistics import STATISTICS, LayerProblem
from tests.layer_problems import (
    LAYER,
    problem_for,
    random_layer,
    random_tokens,
    statistics_from,
    statistics_of,
)
from tests.tolerances import FLOAT64_RELATIVE, KRONECKER_RELATIVE, SPECTRUM_RELATIVE

METHODS = DECOMPOSITIONS.names()
METRIC_METHODS = [m for m in METHODS if hasattr(DECOMPOSITIONS.get(m), "metric")]
SHAPES = [(12, 12), (18, 9), (9, 18)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["square", "tall", "wide"])
methods = pytest.mark.parametrize("method", METHODS)


def factors_of(method: str, problem: LayerProblem, **options: object) -> Factors:
    return decompose_layer(method, problem, DECOMPOSITIONS.options(method, options))


def close(a: Tensor, b: Tensor, relative: float = FLOAT64_RELATIVE) -> bool:
    return bool((a - b).norm() <= relative * max(float(b.norm()), 1e-30))


def plain_svd(weight: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(weight)
    return u[:, :rank] * s[:rank] @ v[:rank]


def dense_factors(method: str, problem: LayerProblem, **given: object) -> tuple[Tensor, Tensor]:
    """L_out^T and L_in^T as explicit matrices."""
    options = DECOMPOSITIONS.options(method, given)
    out_metric, in_metric = DECOMPOSITIONS.get(method).metric(problem, options)
    out, inner = problem.weight.shape
    eye = lambda n: torch.eye(n, dtype=torch.float64)  # noqa: E731
    return out_metric.whiten(eye(out)), in_metric.whiten(eye(inner))


@methods
def test_module_declares_itself(method):
    module = DECOMPOSITIONS.get(method)
    assert module.__doc__
    assert DECOMPOSITIONS.summary(method)
    assert isinstance(module.REFERENCE, str)
    assert module.REFERENCE
    assert set(module.REQUIRES) <= set(STATISTICS.names())
    assert hasattr(module, "metric") != hasattr(module, "decompose")


@methods
def test_options_are_frozen_and_known(method):
    options = DECOMPOSITIONS.options(method)
    for field in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field.name, 1)
        with pytest.raises(InputError, match=field.name):
            DECOMPOSITIONS.options(method, {field.name: object()})
    with pytest.raises(InputError, match="no_such_option"):
        DECOMPOSITIONS.options(method, {"no_such_option": 1})


def test_unknown_method_lists_the_known():
    with pytest.raises(InputError, match=METHODS[0]):
        DECOMPOSITIONS.get("no_such_method")


@methods
@shapes
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_full_rank_returns_the_layer(method, shape, bias):
    problem = problem_for(method, shape, bias)
    factors = factors_of(method, problem)
    tokens = random_tokens(problem.weight, problem.bias, 256)
    assert factors.max_rank == min(shape)
    assert close(factors.weight(factors.max_rank), problem.weight)
    out = tokens.x @ factors.weight(factors.max_rank).T
    given = factors.bias(factors.max_rank, problem.bias)
    assert close(out if given is None else out + given, tokens.y, 1e-6)


@methods
@shapes
def test_spectrum_descends_and_ranks_hold(method, shape):
    factors = factors_of(method, problem_for(method, shape))
    assert bool((factors.spectrum >= 0).all())
    assert bool((factors.spectrum.diff() <= 0).all())
    assert torch.isfinite(factors.left).all()
    assert torch.isfinite(factors.right).all()
    for rank in (1, 4, factors.max_rank):
        left, right = factors.truncated(rank)
        assert left.shape == (shape[0], rank)
        assert right.shape == (rank, shape[1])
        assert torch.linalg.matrix_rank(factors.weight(rank)) <= rank


@methods
@shapes
def test_terms_are_balanced(method, shape):
    factors = factors_of(method, problem_for(method, shape))
    assert torch.allclose(factors.left.norm(dim=0), factors.right.norm(dim=1))


@pytest.mark.parametrize("method", METRIC_METHODS)
@shapes
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_weighted_error_is_the_tail_energy(method, shape, bias):
    problem = problem_for(method, shape, bias)
    factors = factors_of(method, problem)
    out_factor, in_factor = dense_factors(method, problem)
    best = torch.linalg.svdvals(out_factor @ problem.weight @ in_factor.T)
    assert close(factors.spectrum, best, SPECTRUM_RELATIVE)
    for rank in range(factors.max_rank + 1):
        error = out_factor @ (problem.weight - factors.weight(rank)) @ in_factor.T
        reference = float(best[rank:].square().sum())
        scale = FLOAT64_RELATIVE * float(best.square().sum())
        assert abs(float(error.square().sum()) - reference) <= scale
        plain = out_factor @ (problem.weight - plain_svd(problem.weight, rank)) @ in_factor.T
        assert float(error.square().sum()) <= float(plain.square().sum()) + scale


@pytest.mark.parametrize("method", METRIC_METHODS)
def test_metric_products_belong_to_one_factor(method):
    problem = problem_for(method, (9, 7))
    for metric, size in zip(
        DECOMPOSITIONS.get(method).metric(problem, DECOMPOSITIONS.options(method)),
        problem.weight.shape,
        strict=True,
    ):
        matrix = torch.randn(size, 5, dtype=torch.float64)
        transposed = metric.whiten(torch.eye(size, dtype=torch.float64))
        assert close(metric.whiten(matrix), transposed @ matrix)
        assert close(metric.unwhiten(transposed @ matrix), matrix)
        assert close(metric.gram(matrix), matrix.T @ transposed.T @ transposed @ matrix)


@pytest.mark.parametrize("method", ["svd_llm", "obd"])
def test_covariance_factors_are_of_the_damped_covariances(method):
    problem = problem_for(method, (10, 8))
    tokens = random_tokens(problem.weight, None, 256)
    damping = DECOMPOSITIONS.options(method).damping
    out_factor, in_factor = dense_factors(method, problem)

    def damped(rows: Tensor) -> Tensor:
        covariance = rows.T @ rows / len(rows)
        return covariance + damping * covariance.diagonal().mean() * torch.eye(len(covariance))

    assert close(in_factor.T @ in_factor, damped(tokens.x))
    out = damped(tokens.g) if method == "obd" else torch.eye(10, dtype=torch.float64)
    assert close(out_factor.T @ out_factor, out)


def test_gradients_have_a_damping_of_their_own():
    problem = problem_for("obd", (10, 8))
    covariance = problem.statistic("gradient_covariance")
    out_factor, in_factor = dense_factors("obd", problem, gradient_damping=0.5)
    unit = torch.eye(10, dtype=torch.float64)
    expected = covariance + 0.5 * covariance.diagonal().mean() * unit
    assert close(out_factor.T @ out_factor, expected)
    assert close(in_factor, dense_factors("obd", problem)[1])


REDUCE_TO_SVD = [
    name
    for name in DECOMPOSITIONS.names()
    if getattr(DECOMPOSITIONS.get(name), "REDUCES_TO_SVD", False)
]


def identity_states(shape: tuple[int, int]) -> dict[str, dict[str, Tensor]]:
    """Summed states that make every metric the identity (or a multiple of it)."""
    out, inner = shape
    ones, eye = (lambda n: torch.ones(n).double()), (lambda n: torch.eye(n).double())
    return {
        "input_covariance": {"sum": eye(inner)},
        "gradient_covariance": {"sum": eye(out)},
        "input_magnitude": {"sum": ones(inner)},
        "row_fisher": {"sum": ones(out)},
    }


@pytest.mark.parametrize("method", REDUCE_TO_SVD)
@shapes
def test_identity_statistics_reduce_to_plain_svd(method, shape):
    weight, _ = random_layer(shape)
    problem = LayerProblem(LAYER, weight, None, statistics_from(identity_states(shape)))
    factors = factors_of(method, problem)
    for rank in range(min(shape) + 1):
        assert close(factors.weight(rank), plain_svd(weight, rank), 1e-6)


@shapes
def test_identity_gradients_make_obd_svd_llm(shape):
    weight, _ = random_layer(shape)
    inputs = statistics_of(random_tokens(weight, None, 256), shape, ("input_covariance",))
    states = identity_states(shape)
    states["input_covariance"] = {"sum": inputs["input_covariance"]}
    problem = LayerProblem(LAYER, weight, None, statistics_from(states))
    obd = factors_of("obd", problem, damping=1e-6)
    svd_llm = factors_of("svd_llm", problem, damping=1e-6)
    for rank in range(min(shape) + 1):
        assert close(obd.weight(rank), svd_llm.weight(rank), 1e-6)


@shapes
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("count", [5, 256])
def test_afm_keeps_the_mean_and_is_pca(shape, bias, count):
    problem = problem_for("afm", shape, bias, count)
    tokens = random_tokens(problem.weight, problem.bias, count)
    factors = factors_of("afm", problem)
    mean = tokens.y.mean(0)
    centered = (tokens.y - mean).T @ (tokens.y - mean) / tokens.count
    energy = torch.linalg.eigvalsh(centered).flip(0).clamp_min(0)
    for rank in range(1, factors.max_rank + 1):
        out = tokens.x @ factors.weight(rank).T + factors.bias(rank, problem.bias)
        assert close(out.mean(0), mean)
        error = float((out - tokens.y).square().sum(1).mean())
        assert abs(error - float(energy[rank:].sum())) <= FLOAT64_RELATIVE * float(energy.sum())


@pytest.mark.parametrize(
    "shape", [(5, 7, 4), (1, 6, 3), (6, 1, 3), (4, 4, 1), (1, 1, 2), (3, 8, 40)], ids=str
)
def test_kronecker_fit_is_van_loans(shape):
    out, inner, count = shape
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(count, out, inner, generator=generator, dtype=torch.float64)
    in_factor, out_factor = rank_one_kronecker(gradients)
    rearranged = torch.einsum("noi,npj->opij", gradients, gradients)
    u, s, v = torch.linalg.svd(rearranged.reshape(out * out, inner * inner))
    reference = torch.outer(u[:, 0], v[0]) * s[0]
    fitted = torch.outer(out_factor.flatten(), in_factor.flatten())
    assert close(fitted, reference, KRONECKER_RELATIVE)
    assert float(in_factor.trace()) > 0
    assert float(out_factor.trace()) > 0
    fisher = torch.einsum("noi,npj->iojp", gradients, gradients)
    dense = fisher.reshape(out * inner, out * inner)
    error = (dense - torch.kron(in_factor, out_factor)).square().sum()
    assert close(error, s[1:].square().sum().clamp_min(1e-12), KRONECKER_RELATIVE) or (
        float(error) < KRONECKER_RELATIVE * float(s[0]) ** 2 * 1e-3
    )


@methods
@shapes
def test_fewer_tokens_than_channels(method, shape):
    """A singular covariance is warned of or not needed, and the layer stays finite."""
    problem = problem_for(method, shape, bias=True, count=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        factors = factors_of(method, problem)
    assert torch.isfinite(factors.weight(3)).all()
    assert close(factors.weight(factors.max_rank), problem.weight, 1e-6)


def test_undamped_singular_covariance_warns_only_where_it_is_inverted():
    with pytest.warns(NumericalWarning, match="singular"):
        factors_of("svd_llm", problem_for("svd_llm", (18, 9), count=5), damping=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factors_of("svd_llm", problem_for("svd_llm", (9, 18), count=5), damping=0.0)


@methods
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_an_error(method, value):
    problem = problem_for(method, (8, 8))
    weight = problem.weight.clone()
    weight[2, 3] = value
    with pytest.raises(NumericalError, match="non-finite"):
        factors_of(method, replace(problem, weight=weight))


@pytest.mark.parametrize("method", [m for m in METHODS if DECOMPOSITIONS.get(m).REQUIRES])
@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["zero", "nan"])
@shapes
def test_statistics_without_signal_are_an_error(method, value, shape):
    problem = problem_for(method, shape)
    assert problem.statistics is not None
    for by_layer in problem.statistics.calibration.states.values():
        for tensor in by_layer[LAYER].values():
            tensor.fill_(value)
    with pytest.raises(NumericalError):
        factors_of(method, problem)


@methods
def test_statistics_that_were_not_collected_are_named(method):
    required = DECOMPOSITIONS.get(method).REQUIRES
    if not required:
        pytest.skip("needs no statistics")
    problem = replace(problem_for(method, (6, 6)), statistics=statistics_from({}))
    with pytest.raises(InputError, match="was not collected"):
        factors_of(method, problem)


@methods
def test_zero_weight_stays_zero(method):
    problem = problem_for(method, (8, 6))
    factors = factors_of(method, replace(problem, weight=torch.zeros_like(problem.weight)))
    assert float(factors.weight(3).abs().max()) == 0.0
