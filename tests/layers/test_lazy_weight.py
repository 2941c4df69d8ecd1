"""Weights of compact layers that are read: described at once, multiplied out when needed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from spectrim.layers import LAYERS, layer_class
from spectrim.linalg.truncated import Factors
from tests.tolerances import PRODUCT_ABSOLUTE


@pytest.fixture(params=["lowrank", "pivoted"])
def layer(request):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=generator) for shape in ((12, 8), (8, 10)))
    factors = Factors(left, right, torch.arange(8, 0, -1).double())
    options = LAYERS.options(request.param)
    return layer_class(request.param).from_full(factors, 3, None, options).float()


def test_its_description_costs_no_product(layer, monkeypatch):
    monkeypatch.setattr(layer, "forward", lambda x: pytest.fail("a product"))
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    assert weight.dtype == torch.float32
    assert weight.shape == (12, 10)
    assert weight.size(0) == 12
    assert weight.numel() == 120
    assert weight.device == torch.device("cpu")


@torch.no_grad()
def test_its_values_are_those_of_the_layer(layer):
    dense = layer.dense()[0].float()
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    for found, expected in (
        (layer.weight + 0, dense),
        (layer.weight.T, dense.T),
        (layer.weight[2:4], dense[2:4]),
        (torch.stack([layer.weight, layer.weight]), torch.stack([dense, dense])),
        (F.linear(x, layer.weight), layer(x)),
        (layer.weight.to(torch.float64).float(), dense),
    ):
        assert torch.allclose(found, expected, atol=PRODUCT_ABSOLUTE)
        assert type(found) is torch.Tensor


def test_gradients_flow_to_the_factors(layer):
    layer.weight.square().sum().backward()
    gradients = [p.grad for p in layer.parameters() if p.requires_grad]
    assert gradients
    assert all(g is not None and bool(g.any()) for g in gradients)
