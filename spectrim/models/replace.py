"""Replace dense layers by factored ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

from spectrim.layers import CompactLinear, FactoredLinear
from spectrim.layers.shared_basis import SharedBasisLinear, shared_layers
from spectrim.models.linear import is_linear


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` at `name`, in the dtype, device and mode of the module that stood there, and
    a twin of it with the same parameters everywhere else where the model uses that module."""
    old = model.get_submodule(name)
    held = next(chain(old.parameters(), old.buffers()))  # a quantized layer has only buffers
    layer.to(device=held.device, dtype=held.dtype if held.is_floating_point() else None)
    layer.train(old.training)
    for new in layer.parameters():
        new.requires_grad_(held.requires_grad)
    for number, (parent, own_name) in enumerate(places_of(model, old)):
        parent._modules[own_name] = layer if number == 0 else _twin(layer)


def share_tied_layers(model: nn.Module) -> None:
    """Let linear layers that have the same parameters be one module, in place.

    A model that uses one block at several depths may tie the parameters of several modules:
    what is then compressed is one layer, which sees the tokens of all of them.
    """
    first: dict[tuple[int, ...], nn.Module] = {}
    for module in list(model.modules()):
        if is_linear(module):
            parameters = (module._parameters["weight"], module._parameters.get("bias"))
            owner = first.setdefault((*map(id, parameters),), module)
            if owner is not module and type(owner) is type(module):
                for parent, own_name in places_of(model, module):
                    parent._modules[own_name] = owner


def other_names(model: nn.Module, name: str) -> list[str]:
    """Return the further names of the module that is at `name`."""
    module = model.get_submodule(name)
    every = model.named_modules(remove_duplicate=False)
    return [other for other, each in every if each is module and other != name]


def places_of(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return every parent of `module`, with its name there."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is module
    ]


def _twin(layer: nn.Module) -> nn.Module:
    """Copy a module around the same parameters; buffers are copied: checkpoints tie none."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in layer.parameters()}
    return copy.deepcopy(layer, memo)


def share_basis(
    model: nn.Module,
    lefts: Mapping[str, Tensor],
    right: Tensor,
    biases: Mapping[str, Tensor | None],
) -> None:
    """Layers on one basis in place of the modules named by `lefts` (out, r), the first of
    them its owner; right (r, in)."""
    layers = shared_layers(list(lefts.values()), right, [biases[name] for name in lefts])
    for name, layer in zip(lefts, layers, strict=True):
        replace_layer(model, name, layer)


def shared_bases(model: nn.Module) -> dict[str, list[str]]:
    """Return, by each layer whose basis others use, all that use it, itself first."""
    layers = {m: n for n, m in factored_layers(model) if isinstance(m, SharedBasisLinear)}
    found: dict[str, list[str]] = {}
    for layer, name in layers.items():
        if layer.owner is not layer:
            owner = layers[layer.owner]
            found.setdefault(owner, [owner]).append(name)
    return found


def factored_layers(model: nn.Module) -> Iterator[tuple[str, FactoredLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, FactoredLinear):
            yield name, module


def compact_layers(model: nn.Module) -> Iterator[tuple[str, CompactLinear]]:
    """Yield the factored layers, and the quantized ones with a low-rank correction."""
    for name, module in model.named_modules():
        if isinstance(module, CompactLinear):
            yield name, module
