"""The modules of a compressed model that get adapters."""

from __future__ import annotations

from torch import nn

from spectrim.adapters._quantized import is_quantized, quantized_layers
from spectrim.errors import ModelError
from spectrim.models.linear import is_linear
from spectrim.models.replace import compact_layers
from spectrim.models.targets import find_targets
from spectrim.models.usage import layers_read


def adapter_targets(model: nn.Module) -> list[str]:
    """Return the modules that a spectral adapter is put on where none are named.

    On a quantized model these are its quantized factors and layers, else `lora_targets`.
    Raises ModelError for a model with no layer to adapt.
    """
    if is_quantized(model):
        return list(quantized_layers(model))
    return lora_targets(model)


def lora_targets(model: nn.Module) -> list[str]:
    """Names for `target_modules` of a PEFT configuration: the linear children of every factored
    layer, and the layers of the blocks that were left dense. Left out are those that the model
    reads instead of calling (Mamba's `dt_proj`): an adapter would do nothing until merged.

    An adapter on a child leaves its rank as it is when it is merged; PEFT does not take the
    factored layer itself. A basis that several layers share is named once. Raises ModelError
    for a model with no layer to adapt.
    """
    names = [
        f"{name}.{own}"
        for name, layer in compact_layers(model)
        for own, child in layer.named_children()
        if is_linear(child)
    ]
    try:
        read = layers_read(model)
        names += [t.name for t in find_targets(model) if t.name not in read]
    except ModelError:  # every layer is factored
        if not names:
            raise
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return sorted(names, key=order.__getitem__)
