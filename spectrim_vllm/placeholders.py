"""Add parameters without values under the checkpoint's names, for vLLM's loaders to find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

Loader = Callable[..., None]


def add_placeholders(
    layer: nn.Module, names: Iterable[str], loader_of: Callable[[str], Loader]
) -> None:
    """Add a parameter for each of `names`, dotted ones in child modules.

    Args:
        loader_of: Gives each name its `weight_loader(parameter, tensor, shard)`.
    """
    for name in names:
        parent, _, last = name.rpartition(".")
        if parent and parent not in layer._modules:
            layer.add_module(parent, nn.Module())
        parameter = nn.Parameter(torch.empty(0), requires_grad=False)
        parameter.weight_loader = loader_of(name)  # type: ignore[attr-defined]
        layer.get_submodule(parent).register_parameter(last, parameter)


def remove_placeholders(layer: nn.Module, names: Iterable[str]) -> torch.device:
    """Undo `add_placeholders`; return the device of the layer's parameters."""
    device: Any = None
    for name in names:
        parent, _, last = name.rpartition(".")
        module = layer.get_submodule(parent)
        device = module._parameters.pop(last).device  # type: ignore[union-attr]
        if parent and not module._parameters:
            delattr(layer, parent)
    assert device is not None
    return device
