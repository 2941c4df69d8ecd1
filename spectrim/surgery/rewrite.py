"""Replace dense layers by factored ones."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from spectrim.layers import CompactLinear, FactoredLinear


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` at `name`, in the dtype, device and mode of the module that stood there."""
    old = model.get_submodule(name)
    parameter = next(old.parameters())
    layer.to(device=parameter.device, dtype=parameter.dtype)
    layer.train(old.training)
    for new in layer.parameters():
        new.requires_grad_(parameter.requires_grad)
    model.set_submodule(name, layer)


def factored_layers(model: nn.Module) -> Iterator[tuple[str, FactoredLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, FactoredLinear):
            yield name, module


def compact_layers(model: nn.Module) -> Iterator[tuple[str, CompactLinear]]:
    """The factored layers, and the compressed ones with a low-rank path beside them."""
    for name, module in model.named_modules():
        if isinstance(module, CompactLinear):
            yield name, module
