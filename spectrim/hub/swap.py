"""Give an empty model the modules that a checkpoint's tensors are named after."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectrim.errors import CheckpointError, ModelError
from spectrim.hub.config import SpectrimConfig
from spectrim.layers import layer_class
from spectrim.surgery.adapters import bias_of, is_dense, shape_of
from spectrim.surgery.experts import split_experts


def swap_modules(model: nn.Module, config: SpectrimConfig) -> None:
    """Split the experts and put an empty factored layer at each named module, in place.

    Raises CheckpointError when the config does not fit the model.
    """
    _check_count("split_experts", len(config.split_experts), model)
    experts = _names_inside(model, config.split_experts)
    for name in experts:
        _module(model, name)
    try:
        split_experts(model, list(experts))
    except ModelError as error:
        raise CheckpointError(f"the config does not fit the model: {error}") from error
    _swap_layers(model, config)


def _swap_layers(model: nn.Module, config: SpectrimConfig) -> None:
    _check_count("layers", len(config.layers), model)
    inside = _names_inside(model, list(config.layers))
    entries = {local: config.layers[full] for local, full in inside.items()}
    for name, entry in entries.items():
        _check_fit(name, _module(model, name), entry)
    for name, entry in entries.items():
        old = _module(model, name)
        bias = bias_of(old) is not None
        layer = layer_class(entry["kind"]).empty(shape_of(old), entry["rank"], bias)
        model.set_submodule(name, layer)


def _names_inside(model: nn.Module, names: list[str]) -> dict[str, str]:
    """The name in this model of each name in the checkpoint: a bare base model (AutoModel)
    carries no prefix and no output embedding."""
    prefix = getattr(model, "base_model_prefix", "")
    bare = bool(prefix) and not hasattr(model, prefix)
    if not bare or not any(name.startswith(prefix + ".") for name in names):
        return {name: name for name in names}
    local = {name.removeprefix(prefix + "."): name for name in names}
    return {short: name for short, name in local.items() if short != name}


def _check_count(field: str, count: int, model: nn.Module) -> None:
    modules = sum(1 for _ in model.modules())
    if count > modules:
        raise CheckpointError(
            f"'{field}' has {count} entries, {type(model).__name__} only {modules} modules"
        )


def _check_fit(name: str, module: nn.Module, entry: dict[str, Any]) -> None:
    if not is_dense(module):
        raise CheckpointError(
            f"layer {name} is a {type(module).__name__}, expected a dense linear layer"
        )
    out_features, in_features = shape_of(module)
    if entry["rank"] > min(out_features, in_features):
        raise CheckpointError(
            f"layer {name}: rank {entry['rank']} is more than its weight "
            f"({out_features} x {in_features}) can have"
        )


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(
            f"the config names {name}, which {type(model).__name__} does not have"
        ) from None
