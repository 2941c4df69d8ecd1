"""A model that holds all sizes in memory, as an elastic checkpoint stores it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectrim.checkpoint.elastic.entry import check_elastic, rounding_of, sizes_of
from spectrim.errors import CheckpointError
from spectrim.layers import ElasticLinear
from spectrim.layers.quantized import empty_quantized
from spectrim.models.linear import get_shape, is_linear

BUDGET = "spectrim_budget"
"""Field of a model's config, and so a keyword of `from_pretrained`: the size to load."""


def elastic_layers(model: nn.Module) -> dict[str, ElasticLinear]:
    """Return the layers that hold several sizes, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ElasticLinear)}


def check_stored(model: nn.Module, entry: dict[str, Any]) -> None:
    """Raise CheckpointError unless the model holds what `entry` states."""
    check_elastic(entry)
    held = {name: layer.held for name, layer in elastic_layers(model).items()}
    stated = {
        name: (layer.components, layer.has_dense)
        for name, layer in sizes_of(entry).layers.items()
        if layer.components or rounding_of(entry)
    }
    if wrong := sorted(n for n in held | stated if held.get(n) != stated.get(n)):
        raise CheckpointError(
            f"the config and the model differ at {len(wrong)} elastic layers, first {wrong[0]}"
        )


def install_stored(model: nn.Module, entry: dict[str, Any]) -> None:
    """Put empty elastic layers into a dense model, to compare its tensors with a file's."""
    rounding = rounding_of(entry)
    for name, layer in sizes_of(entry).layers.items():
        old: Any = model.get_submodule(name)
        if rounding is not None:
            held = layer.components, layer.has_dense, old.bias is not None
            model.set_submodule(name, empty_quantized(layer.shape, *held, rounding))
        elif layer.components:
            empty = torch.empty(layer.components, sum(layer.shape))
            weight, bias = old.weight, old.bias
            model.set_submodule(
                name, stored_layer(old, empty, weight if layer.has_dense else None, bias)
            )


def stored_layer(old: nn.Module, components: Tensor, weight: Any, bias: Any) -> ElasticLinear:
    """Return an elastic layer in place of the dense layer `old`."""
    assert is_linear(old)
    transposed = not isinstance(old, nn.Linear)
    return ElasticLinear(get_shape(old), components, weight, bias, transposed)
