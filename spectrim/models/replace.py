"""Replace dense layers by factored ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from spectrim.layers import CompactLinear, FactoredLinear
from spectrim.layers.shared_basis import SharedBasisLinear, shared_layers


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` at `name`, in the dtype, device and mode of the module that stood there."""
    old = model.get_submodule(name)
    parameter = next(old.parameters())
    layer.to(device=parameter.device, dtype=parameter.dtype)
    layer.train(old.training)
    for new in layer.parameters():
        new.requires_grad_(parameter.requires_grad)
    model.set_submodule(name, layer)


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
    """By the name of each layer whose basis others use too, all that use it, itself first."""
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
    """The factored layers, and the compressed ones with a low-rank path beside them."""
    for name, module in model.named_modules():
        if isinstance(module, CompactLinear):
            yield name, module
