"""Gradients of the kernel against automatic ones of the same layer in float64."""

from __future__ import annotations

import pytest
import torch

from spectrim.inference.kernels import lowrank_matmul, second_of
from spectrim.inference.kernels.lowrank_matmul import gradients, reference
from tests.inference.kernels.checking import DTYPES, close, random_layer, random_tensor


def gradients_of(operator, layer, x, dy):
    """Of x and of the module's parameters, in their order."""
    module = layer.requires_grad_(True)
    x = x.clone().requires_grad_(True)
    y = operator(x, module.first.weight, module.first.bias, second_of(module))
    given = [x, *module.parameters()]
    return torch.autograd.grad(y, given, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_gradients_are_those_of_two_products(kind, bias, dtype, monkeypatch):
    calls = []
    backward = gradients._to_rank
    monkeypatch.setattr(gradients, "_to_rank", lambda *a: calls.append(1) or backward(*a))
    layer = random_layer(kind, (33, 21), 7, dtype, bias=bias)
    x, dy = random_tensor(2, 5, 21, dtype=dtype), random_tensor(2, 5, 33, dtype=dtype, seed=1)
    exact = gradients_of(
        reference.lowrank_matmul, layer.exact, x.double().cpu(), dy.double().cpu()
    )
    found = gradients_of(lowrank_matmul, layer.module, x, dy)
    assert calls == [1]
    assert len(found) == len(exact) == (5 if bias and kind == "pivoted" else 4 if bias else 3)
    for own, wanted in zip(found, exact, strict=True):
        assert own.dtype == dtype
        assert close(own, wanted)


def test_only_what_is_asked_for_is_computed():
    layer = random_layer("lowrank", (12, 9), 4, torch.float32)
    x = random_tensor(3, 9).requires_grad_(True)
    y = lowrank_matmul(x, layer.right.weight, layer.right.bias, layer.second)
    y.sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in layer.module.parameters())
