"""A path beside a compressed layer: the optimum of its metric, never a loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.decompositions import DECOMPOSITIONS, decompose_layer
from spectrim.layers.quantized import QUANTIZERS, CompensatedLinear
from spectrim.linalg.truncated import Factors
from spectrim.planning.predicted import predicted_curve
from spectrim.statistics import LayerProblem
from tests.layer_problems import LAYER, random_layer, random_tokens, statistics_of
from tests.tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, SPECTRUM_RELATIVE

METHODS = [n for n in DECOMPOSITIONS.names() if hasattr(DECOMPOSITIONS.get(n), "metric")]
BASES = ("rtn", "sparse_2_4", "wanda_2_4")
methods = pytest.mark.parametrize("method", METHODS)
bases = pytest.mark.parametrize("base", BASES)
SHAPE = (16, 24)
PRICED = {"input_covariance", "gradient_covariance"}


def residual(method: str, base: str) -> tuple[LayerProblem, CompensatedLinear]:
    """The problem of what `base` lost, with the statistics of `method`, and the base alone."""
    weight, bias = random_layer(SHAPE)
    tokens = random_tokens(weight, bias, 256)
    names = tuple({*DECOMPOSITIONS.get(method).REQUIRES, *PRICED})
    statistics = statistics_of(tokens, SHAPE, names)
    problem = LayerProblem(LAYER, weight, bias, statistics)
    layer = QUANTIZERS.get(base).compress(problem, QUANTIZERS.options(base))
    lost = weight - layer.dense()[0]
    return LayerProblem(LAYER, lost, None, statistics), CompensatedLinear(layer, None, None)


def factors_of(method: str, problem: LayerProblem) -> Factors:
    return decompose_layer(method, problem, DECOMPOSITIONS.options(method))


def weighted(method: str, problem: LayerProblem, matrix: Tensor) -> float:
    """`||L_out^T matrix L_in||^2` with explicit factors."""
    metric = DECOMPOSITIONS.get(method).metric(problem, DECOMPOSITIONS.options(method))
    eye = [torch.eye(size, dtype=torch.float64) for size in problem.weight.shape]
    whitened = metric[0].whiten(eye[0]) @ matrix @ metric[1].whiten(eye[1]).T
    return float(whitened.square().sum())


@methods
@bases
def test_the_error_left_is_the_tail_energy_and_falls(method, base):
    problem, alone = residual(method, base)
    factors = factors_of(method, problem)
    weight = problem.weight + alone.dense()[0]
    total = weighted(method, problem, problem.weight)
    before = total
    for rank in range(factors.max_rank + 1):
        layer = CompensatedLinear.from_factors(alone.base, *factors.truncated(rank))
        assert layer.rank == rank
        error = weighted(method, problem, weight - layer.dense()[0])
        tail = float(factors.spectrum[rank:].square().sum())
        assert abs(error - tail) <= SPECTRUM_RELATIVE * total
        assert error <= before + SPECTRUM_RELATIVE * total
        before = error


@bases
def test_obd_prices_its_own_paths_lowest(base):
    """At every rank, by the quadratic model of the loss whose optimum it is."""
    problem, _ = residual("obd", base)
    undamped = DECOMPOSITIONS.options("obd", {"damping": 0.0})
    best = predicted_curve(decompose_layer("obd", problem, undamped), problem.statistics)
    for method in ("eora", "svd"):
        other = predicted_curve(factors_of(method, problem), problem.statistics)
        assert bool((best <= other + SPECTRUM_RELATIVE * other[0]).all())
        assert bool((best[1:-1] < other[1:-1]).all())


@bases
def test_eora_has_the_eigenvalue_roots_optimum(base):
    """The published construction: truncate R Q sqrt(L), times the inverse of the root."""
    problem, _ = residual("eora", base)
    values, vectors = torch.linalg.eigh(problem.statistic("input_covariance"))
    root = vectors * values.sqrt()
    u, s, v = torch.linalg.svd(problem.weight @ root, full_matrices=False)
    options = DECOMPOSITIONS.options("eora", {"damping": 0.0})
    factors = decompose_layer("eora", problem, options)
    for rank in (1, 5, 10):
        published = (u[:, :rank] * s[:rank] @ v[:rank]) @ torch.linalg.inv(root)
        difference = (factors.weight(rank) - published).norm()
        assert float(difference) <= SPECTRUM_RELATIVE * float(published.norm())


@bases
@pytest.mark.parametrize("rank", [0, 3])
def test_forward_is_its_dense_matrix(base, rank):
    problem, alone = residual("svd", base)
    factors = factors_of("svd", problem)
    layer = CompensatedLinear.from_factors(alone.base, *factors.truncated(rank)).float()
    weight, bias = layer.dense()
    x = torch.randn(2, 5, SHAPE[1], generator=torch.Generator().manual_seed(0))
    expected = x.double() @ weight.T + bias
    difference = (layer(x).detach() - expected).norm()
    assert float(difference) <= FLOAT32_RELATIVE * float(expected.norm())


def test_a_path_of_full_rank_is_the_weight():
    problem, alone = residual("obd", "rtn")
    factors = factors_of("obd", problem)
    layer = CompensatedLinear.from_factors(alone.base, *factors.truncated(factors.max_rank))
    weight = problem.weight + alone.dense()[0]
    assert float((layer.dense()[0] - weight).norm()) <= FLOAT64_RELATIVE * float(weight.norm())


def test_an_empty_path_has_the_same_tensors():
    problem, alone = residual("svd", "rtn")
    layer = CompensatedLinear.from_factors(alone.base, *factors_of("svd", problem).truncated(4))
    other = CompensatedLinear.empty_path(alone.base, 4)
    shapes = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    assert {name: tensor.shape for name, tensor in other.state_dict().items()} == shapes
