"""Give an empty model the modules that a checkpoint's tensors are named after."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.config_entries import (
    COMPENSATED,
    empty_compensated,
    install_empty_children,
    install_empty_table,
)
from spectrim.errors import CheckpointError, ModelError
from spectrim.layers import layer_class
from spectrim.layers.shared_basis import SharedBasisLinear
from spectrim.models.expert_removal import ExpertRemoval, remove_experts
from spectrim.models.experts import split_experts
from spectrim.models.linear import get_bias, get_shape, is_linear


def install_empty_layers(model: nn.Module, config: SpectrimConfig) -> None:
    """Split the experts and put an empty factored layer at each named module, in place.

    Raises CheckpointError when the config does not fit the model.
    """
    _check_count("split_experts", len(config.split_experts), model)
    experts = names_inside(model, config.split_experts)
    for name in experts:
        module_at(model, name)
    try:
        split_experts(model, list(experts))
    except ModelError as error:
        raise CheckpointError(f"the config does not fit the model: {error}") from error
    _swap_layers(model, config)
    _remove_experts(model, config)
    install_empty_children(model, config.inner)
    if (entry := config.embeddings) is not None:
        names = [name for name in (entry["name"], entry["head"]) if name is not None]
        inside = {full: local for local, full in names_inside(model, names).items()}
        install_empty_table(model, entry, inside)


def _remove_experts(model: nn.Module, config: SpectrimConfig) -> None:
    entries = config.removed_experts
    names = [*entries, *(entry["router"] for entry in entries.values())]
    inside = {full: local for local, full in names_inside(model, names).items()}
    for name, entry in entries.items():
        if name not in inside or entry["router"] not in inside:
            continue  # a bare model without these experts
        local, router = inside[name], inside[entry["router"]]
        module_at(model, router)
        try:
            remove_experts(model, [ExpertRemoval(local, router, tuple(entry["removed"]))])
        except ModelError as error:
            raise CheckpointError(f"the config does not fit the model: {error}") from error


def _swap_layers(model: nn.Module, config: SpectrimConfig) -> None:
    _check_count("layers", len(config.layers), model)
    entries = _local_entries(model, config)
    for name in entries:
        _check_dense(name, module_at(model, name))
    users = _users(entries)
    for name, entry in entries.items():
        _check_fit(model, name, entry, users[entry.get("basis", name)])
    for name, entry in entries.items():
        if "basis" not in entry:
            old = module_at(model, name)
            layer = _empty(entry, get_shape(old), _has_bias(entry, old))
            model.set_submodule(name, layer)
    for name, entry in entries.items():
        if "basis" in entry:
            old, owner = module_at(model, name), module_at(model, entry["basis"])
            assert isinstance(owner, SharedBasisLinear)
            layer = owner.empty_member(get_shape(old)[0], _has_bias(entry, old))
            model.set_submodule(name, layer)


def _has_bias(entry: dict[str, Any], old: nn.Module) -> bool:
    """Return whether the layer has a bias: the dense one's, or one that its entry adds."""
    return bool(entry.get("bias")) or get_bias(old) is not None


def _local_entries(model: nn.Module, config: SpectrimConfig) -> dict[str, dict[str, Any]]:
    """Return the layers that this model has, under its names."""
    inside = names_inside(model, list(config.layers))
    local = {full: name for name, full in inside.items()}
    entries = {name: dict(config.layers[full]) for name, full in inside.items()}
    for name, entry in entries.items():
        if "basis" in entry:
            if entry["basis"] not in local:
                raise CheckpointError(
                    f"layer {name} needs the basis of {entry['basis']}, which "
                    f"{type(model).__name__} does not have"
                )
            entry["basis"] = local[entry["basis"]]
    return entries


def _users(entries: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return, by the layer that holds a basis, all layers that use it, itself included."""
    users: dict[str, list[str]] = {}
    for name, entry in entries.items():
        users.setdefault(entry.get("basis", name), []).append(name)
    return users


def _empty(entry: dict[str, Any], shape: tuple[int, int], bias: bool) -> nn.Module:
    if entry["kind"] == COMPENSATED:
        return empty_compensated(entry, shape, bias)
    return layer_class(entry["kind"]).empty(shape, entry["rank"], bias)


def names_inside(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Return the name in this model of each name in the checkpoint.

    A bare base model (AutoModel) has no prefix and no output embedding.
    """
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


def _check_dense(name: str, module: nn.Module) -> None:
    if not is_linear(module):
        raise CheckpointError(
            f"layer {name} is a {type(module).__name__}, expected a dense linear layer"
        )


def _check_fit(model: nn.Module, name: str, entry: dict[str, Any], users: list[str]) -> None:
    shapes = [get_shape(module_at(model, user)) for user in users]
    in_features = get_shape(module_at(model, name))[1]
    if any(width != in_features for _, width in shapes):
        raise CheckpointError(
            f"layer {name} is {in_features} wide, another layer on its basis is not; "
            f"widths of {', '.join(users)}: {[width for _, width in shapes]}"
        )
    out_features = sum(rows for rows, _ in shapes)
    if entry["rank"] > min(out_features, in_features):
        raise CheckpointError(
            f"layer {name}: rank {entry['rank']} is more than its weight "
            f"({out_features} x {in_features}) can have"
        )


def module_at(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(
            f"the config names {name}, which {type(model).__name__} does not have"
        ) from None
