"""Sparse dictionaries of whole decompositions: in which metric, how exact, how large."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrim.decompositions import DECOMPOSITIONS, decompose_layer
from spectrim.errors import InputError
from spectrim.layers import LAYERS
from spectrim.layers.pivoted import pack_bits
from spectrim.layers.sparse_dictionary import SparseDictionaryLinear, nonzeros_of
from spectrim.linalg.metric import DiagonalMetric, IdentityMetric
from spectrim.linalg.sparse_coding import keep_largest
from spectrim.linalg.truncated import Factors, weighted_svd
from tests.layer_problems import problem_for, random_layer, random_tokens, stored_weights
from tests.tolerances import FLOAT64_RELATIVE

VARIANTS = ("orthogonal", "ksvd")
SHAPES = [(18, 18), (30, 12), (12, 30)]
variants = pytest.mark.parametrize("variant", VARIANTS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["square", "tall", "wide"])


def options(variant: str = "orthogonal", rounds: int = 20):
    return LAYERS.options("sparse_dictionary", {"variant": variant, "rounds": rounds})


def decomposed(method: str, shape: tuple[int, int], bias: bool = False) -> Factors:
    problem = problem_for(method, shape, bias)
    return decompose_layer(method, problem, DECOMPOSITIONS.options(method))


def layer_of(
    factors: Factors, rank: int, bias: Tensor | None = None, variant: str = "orthogonal"
) -> SparseDictionaryLinear:
    return SparseDictionaryLinear.from_full(factors, rank, bias, options(variant))


def output_error(shape: tuple[int, int], weight: Tensor) -> float:
    """||(W - W_hat) x||^2 over the tokens that `problem_for` calibrates on, damping apart."""
    original, _ = random_layer(shape)
    x = random_tokens(original, None, 256).x
    return float((x @ (original - weight).T).square().sum())


@variants
@shapes
def test_svd_llm_factors_code_the_outputs(variant, shape):
    """Nearer than as many terms as a row has coefficients; no nearer than as many as atoms."""
    rank = min(shape) // 2
    factors = decomposed("svd_llm", shape)
    here = output_error(shape, layer_of(factors, rank, variant=variant).dense()[0])
    truncated = [output_error(shape, factors.weight(r)) for r in (nonzeros_of(rank), rank)]
    assert truncated[0] > here > truncated[1]


@variants
@shapes
def test_the_metric_of_the_inputs_is_used(variant, shape):
    """Inputs of sizes from 1 to 100: factors that know them are nearer than plain ones."""
    weight = random_layer(shape)[0]
    scale = torch.logspace(0, 2, shape[1], dtype=torch.float64)
    errors = []
    for metric in (DiagonalMetric(scale), IdentityMetric()):
        found, _ = layer_of(
            weighted_svd(weight, IdentityMetric(), metric), 8, None, variant
        ).dense()
        errors.append(float(((weight - found) * scale).norm()))
    assert errors[0] < 0.9 * errors[1]


@shapes
def test_the_atoms_are_the_best_for_their_coefficients(shape):
    """No step away from them lowers the error in the metric of the inputs."""
    layer = layer_of(decomposed("svd_llm", shape), 7)
    original, _ = random_layer(shape)
    x = random_tokens(original, None, 256).x
    layer.values.requires_grad_(False)
    (layer(x) - x @ original.T).square().sum().backward()
    assert layer.dictionary.weight.grad is not None
    slope = float(layer.dictionary.weight.grad.norm() * layer.dictionary.weight.detach().norm())
    assert slope <= FLOAT64_RELATIVE * float((x @ original.T).square().sum())


@variants
@pytest.mark.parametrize("method", ["svd", "obd", "fwsvd", "asvd", "afm", "gfwsvd"])
def test_more_atoms_are_nearer(variant, method):
    """In the norm of the weight, which no method's metric is far from here."""
    shape = (18, 12)
    factors = decomposed(method, shape)
    weight = factors.weight(factors.max_rank)
    errors = [
        float((layer_of(factors, rank, variant=variant).dense()[0] - weight).norm())
        for rank in (1, 6, 12)
    ]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("method", ["afm", "obd_bias"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_the_bias_takes_over_the_mean_of_what_is_cut(method, bias):
    shape = (14, 10)
    problem = problem_for(method, shape, bias)
    tokens = random_tokens(problem.weight, problem.bias, 256)
    factors = decompose_layer(method, problem, DECOMPOSITIONS.options(method))
    with torch.no_grad():
        output = layer_of(factors, 5, problem.bias)(tokens.x)
    assert float((output - tokens.y).norm()) > 0.01 * float(tokens.y.norm())
    assert torch.allclose(output.mean(0), tokens.y.mean(0), rtol=0, atol=1e-8)


@variants
def test_one_atom_is_the_truncated_factor(variant):
    """k = s = 1: the sparse code is the best rank-one term."""
    factors = decomposed("svd_llm", (18, 12))
    weight, _ = layer_of(factors, 1, variant=variant).dense()
    assert torch.allclose(weight, factors.weight(1), rtol=0, atol=1e-4)


def test_factors_of_a_zero_and_of_a_rank_deficient_weight():
    weight = random_layer((12, 8))[0]
    low = weight[:, :2] @ weight[:2]
    for given_weight in (torch.zeros_like(weight), low):
        u, s, v = torch.linalg.svd(given_weight, full_matrices=False)
        s = torch.where(s > 1e-12, s, 0.0)
        layer = layer_of(Factors(u * s, v, s).balanced(), 5)
        assert torch.isfinite(layer.dictionary.weight).all()
        assert torch.allclose(layer.dense()[0], given_weight, rtol=0, atol=1e-10)


@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 10**6), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_shape_and_rank(out_features, in_features, seed, data):
    rank = data.draw(st.integers(1, min(out_features, in_features)))
    variant = data.draw(st.sampled_from(VARIANTS))
    weight = random_layer((out_features, in_features), seed)[0]
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    layer = SparseDictionaryLinear.from_full(
        Factors(u * s, v, s).balanced(), rank, None, options(variant, 3)
    )
    assert layer.validate() is None
    assert stored_weights(layer) == layer.cost(out_features, in_features, rank)
    assert int((layer.coefficients() != 0).sum(1).max()) <= nonzeros_of(rank)
    assert float((layer.dense()[0] - weight).norm()) <= float(weight.norm()) * (1 + 1e-9)


def test_factors_that_are_not_sparse_are_approximated():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    right = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    weight, _ = SparseDictionaryLinear.from_factors(left, right, None).dense()
    u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    thresholded = keep_largest(u * s, 4) @ v
    error = float((weight - left @ right).norm())
    assert 0 < error < float((thresholded - left @ right).norm())
    assert torch.linalg.matrix_rank(weight) == 8


def test_bits_cost_less_than_indices_and_are_counted():
    layer = layer_of(decomposed("svd", (30, 12)), 12)
    assert layer.mask.numel() == 30 * 12 // 8
    assert layer.values.numel() == 30 * 6
    without = sum(parameter.numel() for parameter in layer.parameters())
    assert layer.cost(30, 12, 12) - without == -(-layer.mask.numel() // 2) == 23


def test_a_damaged_mask_is_named():
    layer = layer_of(decomposed("svd", (12, 12)), 6)
    assert layer.validate() is None
    marked = layer.coefficients() != 0
    marked[3] = True
    layer.mask.copy_(pack_bits(marked.flatten()))
    assert "mask marks other than 3 places in 1 of its rows" in str(layer.validate())


def test_options_are_checked():
    for wrong in ({"variant": "k-svd"}, {"rounds": 0}, {"power_iterations": 0}, {"ratio": 2}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            LAYERS.options("sparse_dictionary", wrong)
