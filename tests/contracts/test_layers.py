"""What every layer kind promises: one matrix, however it is stored."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spectrim.errors import NumericalError, UnknownNameError
from spectrim.layers import LAYERS, FactoredLinear, layer_class
from spectrim.layers.pivoted import pack_bits, unpack_bits
from spectrim.layers.sparse_dictionary import nonzeros_of
from spectrim.linalg.pivoting import COEFFICIENT_BOUND, pivot_rows
from spectrim.linalg.sparse_coding import keep_largest
from tests.layer_problems import stored_weights
from tests.tolerances import BFLOAT16_LAYER_FACTOR, FLOAT32_RELATIVE, FLOAT64_RELATIVE

KINDS = LAYERS.names()
SHAPES = [(12, 12), (20, 9), (9, 20)]
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
kinds = pytest.mark.parametrize("kind", KINDS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["square", "tall", "wide"])
biases = pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])


def factors(
    shape: tuple[int, int], rank: int, seed: int = 0, kind: str = "lowrank"
) -> tuple[Tensor, Tensor, Tensor]:
    """left (out, r), right (r, in), bias (out,), float64, that `kind` stores without loss."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    left, right, bias = rows(shape[0], rank), rows(rank, shape[1]), rows(shape[0])
    if not layer_class(kind).LOSSLESS:
        left = keep_largest(left, nonzeros_of(rank))
    return left, right, bias


def built(kind: str, shape: tuple[int, int], rank: int, with_bias: bool) -> FactoredLinear:
    left, right, bias = factors(shape, rank, kind=kind)
    return layer_class(kind).from_factors(left, right, bias if with_bias else None)


def inputs(width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, width, generator=generator, dtype=torch.float64).to(dtype)


def close(a: Tensor, b: Tensor, relative: float) -> bool:
    return bool((a.double() - b.double()).norm() <= relative * b.double().norm())


@kinds
def test_module_declares_itself(kind):
    module = LAYERS.get(kind)
    assert module.__doc__
    assert module.REFERENCE
    assert issubclass(module.LAYER, FactoredLinear)


def test_unknown_kind_lists_the_known():
    with pytest.raises(UnknownNameError, match=KINDS[0]):
        layer_class("no_such_kind")


@kinds
@shapes
@biases
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_it_is_the_matrix_it_was_made_from(kind, shape, with_bias, rank):
    left, right, bias = factors(shape, rank, kind=kind)
    layer = built(kind, shape, rank, with_bias)
    weight, dense_bias = layer.dense()
    assert close(weight, left @ right, FLOAT64_RELATIVE)
    assert (dense_bias is not None) == with_bias
    if dense_bias is not None:
        assert close(dense_bias, bias, FLOAT64_RELATIVE)
    assert (layer.out_features, layer.in_features, layer.rank) == (*shape, rank)
    assert all(parameter.dtype == torch.float64 for parameter in layer.parameters())


@kinds
@shapes
@biases
@pytest.mark.parametrize(
    ("dtype", "relative"),
    [(torch.float64, FLOAT64_RELATIVE), (torch.float32, FLOAT32_RELATIVE)],
    ids=str,
)
def test_forward_is_its_dense_matrix(kind, shape, with_bias, dtype, relative):
    layer = built(kind, shape, 4, with_bias).to(dtype)
    weight, bias = layer.dense()
    x = inputs(shape[1], dtype)
    expected = x.double() @ weight.T
    output = layer(x)
    assert output.dtype == dtype
    assert close(output, expected if bias is None else expected + bias, relative)
    assert close(layer(x[0, 0]), output[0, 0], relative)


@kinds
@shapes
@biases
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_cost_counts_what_is_stored(kind, shape, with_bias, rank):
    layer = built(kind, shape, rank, with_bias)
    assert stored_weights(layer) == type(layer).cost(*shape, rank)
    biases_stored = sum(p.numel() for n, p in layer.named_parameters() if n.endswith("bias"))
    assert biases_stored == (shape[0] if with_bias else 0)


@kinds
@pytest.mark.parametrize("shape", SHAPES)
def test_cost_rises_with_the_rank(kind, shape):
    costs = [layer_class(kind).cost(*shape, rank) for rank in range(1, min(shape) + 1)]
    assert costs == sorted(set(costs))


@kinds
@shapes
@biases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_fits_an_empty_layer_exactly(kind, shape, with_bias, dtype):
    layer = built(kind, shape, 4, with_bias).to(dtype)
    other = layer_class(kind).empty(shape, 4, with_bias).to(dtype)
    other.load_state_dict(layer.state_dict(), strict=True)
    x = inputs(shape[1], dtype)
    assert torch.equal(other(x), layer(x))
    for a, b in zip(other.dense(), layer.dense(), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@kinds
@biases
def test_empty_on_the_meta_device_is_filled_by_assignment(kind, with_bias):
    layer = built(kind, (20, 9), 4, with_bias).float()
    with torch.device("meta"):
        other = layer_class(kind).empty((20, 9), 4, with_bias)
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    other.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(other(inputs(9, torch.float32)), layer(inputs(9, torch.float32)))


@kinds
@shapes
def test_bfloat16_error_is_near_the_dense_layers(kind, shape, record_property):
    layer = built(kind, shape, 4, True)
    weight, bias = layer.dense()
    x = inputs(shape[1], torch.bfloat16)
    exact = x.double() @ weight.T + bias
    dense = nn.functional.linear(x, weight.bfloat16(), bias.bfloat16())
    output = layer.bfloat16()(x)

    def error(y: Tensor) -> float:
        return float((y.detach().double() - exact).norm() / exact.norm())

    record_property("bfloat16_error_factored", error(output))
    record_property("bfloat16_error_dense", error(dense))
    assert error(output) <= BFLOAT16_LAYER_FACTOR * error(dense)


@pytest.mark.few(2)
@kinds
@biases
def test_compiles(kind, with_bias):
    layer = built(kind, (20, 9), 4, with_bias).float()
    x = inputs(9, torch.float32)
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    assert torch.equal(compiled(x), layer(x))
    torch._dynamo.reset()


@kinds
def test_children_are_plain_linear_modules(kind):
    children = list(built(kind, (20, 9), 4, True).children())
    assert children
    assert all(type(child) is nn.Linear for child in children)


@kinds
@shapes
@biases
def test_gradients_are_those_of_the_dense_matrix(kind, shape, with_bias):
    layer = built(kind, shape, 4, with_bias)
    x = inputs(shape[1]).requires_grad_()
    layer(x).square().sum().backward()
    weight, bias = layer.dense()
    twin = x.detach().clone().requires_grad_()
    expected = twin @ weight.T
    (expected if bias is None else expected + bias).square().sum().backward()
    assert close(x.grad, twin.grad, FLOAT64_RELATIVE)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@kinds
def test_training_after_inference_mode(kind):
    """What is kept from the first call must not be an inference tensor."""
    layer = built(kind, (20, 9), 4, True)
    with torch.inference_mode():
        layer(inputs(9))
    layer(inputs(9).requires_grad_()).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@kinds
def test_copies_and_pickles_are_the_same_layer(kind):
    layer = built(kind, (20, 9), 4, True)
    output = layer(inputs(9))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(inputs(9)), output)


@kinds
def test_loading_twice_uses_the_last_state(kind):
    left, right, bias = factors((20, 9), 4, seed=5, kind=kind)
    first = built(kind, (20, 9), 4, True)
    second = layer_class(kind).from_factors(left, right, bias)
    first(inputs(9))
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(inputs(9)), second(inputs(9)))


@kinds
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_factors_of_unlike_sizes_survive_half_precision(kind, scale):
    left, right, _ = factors((20, 9), 4, kind=kind)
    layer = layer_class(kind).from_factors(left * scale, right / scale, None)
    assert close(layer.half().dense()[0], left @ right, 1e-2)


@kinds
def test_a_zero_matrix_stays_zero(kind):
    left, right, _ = factors((12, 8), 3)
    layer = layer_class(kind).from_factors(left, torch.zeros_like(right), None)
    assert not layer(inputs(8)).any()


# --- pivoted storage -----------------------------------------------------------------


def ill_conditioned(rows: int, rank: int, digits: float, seed: int) -> Tensor:
    """(rows, rank) of condition number about 10**digits, with rows of unlike sizes."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = 10 ** (-digits * torch.linspace(0, 1, rank, dtype=torch.float64))
    return (u * values) @ v


@given(st.integers(1, 12), st.integers(0, 28), st.floats(0, 10), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_coefficients_are_bounded(rank, more, digits, seed):
    left = ill_conditioned(rank + more, rank, digits, seed)
    pivots, coefficients = pivot_rows(left)
    assert coefficients.shape == (more, rank)
    if more:
        assert float(coefficients.abs().max()) <= COEFFICIENT_BOUND * (1 + 1e-6)
    mask = torch.zeros(rank + more, dtype=torch.bool)
    mask[pivots] = True
    assert pivots.tolist() == mask.nonzero().flatten().tolist()
    error = (left[~mask] - coefficients @ left[pivots]).norm()
    assert float(error) <= FLOAT64_RELATIVE * float(left.norm())


@pytest.mark.parametrize("rank", [2, 4])
def test_a_rank_deficient_factor_is_an_error(rank):
    left, right, _ = factors((12, 8), rank)
    left[:, 1] = 2 * left[:, 0]
    with pytest.raises(NumericalError, match="rank below"):
        layer_class("pivoted").from_factors(left, right, None)
    with pytest.raises(NumericalError, match="rank below"):
        pivot_rows(torch.zeros(12, rank))


def test_a_weight_of_zeros_can_be_pivoted():
    bias = torch.arange(12.0)
    layer = layer_class("pivoted").from_factors(torch.zeros(12, 2), torch.ones(2, 8), bias)
    assert layer.validate() is None
    weight, same = layer.dense()
    assert not weight.any()
    assert torch.equal(same, bias.double())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_factor_is_an_error(value):
    left, _, _ = factors((12, 8), 3)
    left[3, 1] = value
    with pytest.raises(NumericalError, match="non-finite"):
        pivot_rows(left)


def test_all_rows_pivots():
    left, right, bias = factors((6, 9), 6)
    layer = layer_class("pivoted").from_factors(left, right, bias)
    assert close(layer(inputs(9)), inputs(9) @ (left @ right).T + bias, FLOAT64_RELATIVE)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65])
def test_bits_pack_and_unpack(count):
    bits = torch.rand(count, generator=torch.Generator().manual_seed(count)) > 0.5
    packed = pack_bits(bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-count // 8)
    assert torch.equal(unpack_bits(packed, count), bits)
    assert torch.equal(unpack_bits(pack_bits(~bits), count), ~bits)
    for i in range(count):
        assert bool(int(packed[i // 8]) >> (i % 8) & 1) == bool(bits[i])
