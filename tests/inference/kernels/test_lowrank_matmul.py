"""One kernel against two products and exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from spectrim.inference.kernels import lowrank_matmul
from spectrim.inference.kernels.lowrank_matmul import MOST_TOKENS, reference
from tests.inference.kernels.checking import DTYPES, close, random_layer, random_tensor

SHAPES = [(33, 17, 5), (40, 300, 18), (150, 24, 16)]
"""out, in, rank: multiples of no tile, more than one block of each."""


def run(operator, layer, x):
    return operator(x, layer.right.weight, layer.right.bias, layer.second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_both_products(shape, kind, dtype):
    out, width, rank = shape
    layer = random_layer(kind, (out, width), rank, dtype)
    x = random_tensor(2, 3, width, dtype=dtype)
    exact = layer.exact(x.double().cpu())
    for operator in (lowrank_matmul, reference.lowrank_matmul):
        result = run(operator, layer, x)
        assert result.shape == exact.shape
        assert result.dtype == dtype
        assert close(result, exact)


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_from_one_token_to_sixteen(tokens, bias):
    layer = random_layer("pivoted", (30, 20), 7, torch.float32, bias=bias)
    x = random_tensor(tokens, 20)
    assert close(run(lowrank_matmul, layer, x), layer.exact(x.double().cpu()))


def test_many_tokens_take_two_products(monkeypatch):
    layer = random_layer("lowrank", (30, 20), 7, torch.float32)
    x = random_tensor(MOST_TOKENS + 1, 20)
    assert torch.equal(run(lowrank_matmul, layer, x), run(reference.lowrank_matmul, layer, x))
