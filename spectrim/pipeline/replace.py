"""Replace the planned layers of a model by factored ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.checkpoint import (
    SpectrimConfig,
    attach_config,
    check_weights,
    overflow_remedy,
)
from spectrim.checkpoint.empty_layers import install_empty_layers
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import CheckpointError
from spectrim.layers import LAYERS, FactoredLinear, layer_class
from spectrim.models.copying import deep_copy
from spectrim.models.expert_removal import remove_experts
from spectrim.models.experts import SplitExperts, split_expert_names
from spectrim.models.linear import get_bias, get_shape, is_linear
from spectrim.models.offload import StreamedModel
from spectrim.models.replace import other_names, replace_layer, share_basis
from spectrim.pipeline.decompose import versions
from spectrim.planning import SHARED, Decomposition, ExpertPlan, Plan, drop_experts
from spectrim.planning.experts import is_left
from spectrim.runtime.memory import trim_memory

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=PreTrainedModel)


def replace_layers(
    model: M,
    decomposition: Decomposition,
    plan: Plan,
    dtype: torch.dtype | None = None,
) -> M:
    """Return a compressed copy of `model`; tensors that do not change are shared with it.

    The config of a transformers model describes the compressed layers.

    dtype: of the whole result; None keeps the model's. Raises CheckpointError if plan,
    decomposition and model do not belong together.
    """
    decomposition = drop_experts(decomposition, plan)
    _check_fits(model, decomposition, plan)
    result: Any = shared_copy(model)
    untied = isinstance(result, PreTrainedModel) and untie_head(result, _entries(plan))
    for name, rank in plan.ranks.items():
        if plan.layers[name].members:
            _share(result, decomposition, {name: rank})
            continue
        bias = get_bias(result.get_submodule(name))
        replace_layer(result, name, factored_layer(decomposition, plan, name, bias))
    remove_experts(result, plan.removals)
    if not isinstance(result, PreTrainedModel):
        return result if dtype is None else result.to(dtype)
    if dtype is not None:
        result = cast_for_saving(result, dtype)
    result.config.dtype = next(result.parameters()).dtype
    added = added_biases(model, decomposition, plan)
    config = config_for(plan, split_expert_names(result), untied, added)
    for name, entry in list(config.layers.items()):
        config.layers |= dict.fromkeys(other_names(model, name), entry)
    attach_config(result, config)
    return result


def compressed_structure(
    source: StreamedModel, decomposition: Decomposition, plan: Plan
) -> PreTrainedModel:
    """Return the structure of what `replace_layers` gives of the whole model, with its config.

    Raises CheckpointError for a plan of another model.
    """
    _check_fits(source.model, decomposition, plan)
    added = added_biases(source.model, decomposition, plan)
    untied = _ties_planned_head(source.model, plan.ranks)
    config = config_for(plan, split_expert_names(source.model), untied, added)
    result = source.structure()
    with torch.device("meta"):
        install_empty_layers(result, config)
    attach_config(result, config)
    return result


@dataclass(frozen=True)
class CompressedParts:
    """A callable that returns the tensors of one part of the compressed model, in `dtype`."""

    source: StreamedModel
    decomposition: Decomposition
    plan: Plan
    dtype: torch.dtype

    def __call__(self, name: str) -> dict[str, Tensor]:
        trim_memory()
        source, model = self.source, self.source.model
        with source.resident(name):
            planned = [layer for layer in self.plan.ranks if source.part_of(layer) == name]
            replaced = tuple(layer + "." for layer in planned)
            tensors = {
                key: self._cast(tensor)
                for key, tensor in source.state(name).items()
                if not key.startswith(replaced) and source.tied_to(key) is None
            }
            for layer in planned:
                bias = get_bias(model.get_submodule(layer))
                made = factored_layer(self.decomposition, self.plan, layer, bias)
                made.to(dtype=source.dtype).to(dtype=self.dtype)
                tensors |= {
                    f"{layer}.{key}": tensor.detach().contiguous()
                    for key, tensor in made.state_dict().items()
                }
        return tensors

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).contiguous() if tensor.is_floating_point() else tensor


def factored_layer(
    decomposition: Decomposition, plan: Plan, name: str, bias: Tensor | None
) -> FactoredLinear:
    """Return the layer `name` at its rank in the plan's kind; bias: of the dense layer."""
    options = LAYERS.options(plan.layer, plan.layer_options)
    factors = decomposition.factors[name]
    return layer_class(plan.layer).from_full(factors, plan.ranks[name], bias, options)


def added_biases(model: nn.Module, decomposition: Decomposition, plan: Plan) -> list[str]:
    """Return the layers that get a bias from their method and have none in `model`."""
    if hasattr(DECOMPOSITIONS.get(plan.method), "metric"):
        return []
    factors, ranks = decomposition.expand_groups(plan.ranks)
    without = [n for n in ranks if get_bias(model.get_submodule(n)) is None]
    return [name for name in without if factors[name].bias_shift is not None]


def config_for(
    plan: Plan, split_experts: list[str], untied: bool, added: Iterable[str] = ()
) -> SpectrimConfig:
    """Return the checkpoint config of a model compressed by `plan`.

    added: the layers that have a bias where the dense layers have none.
    """
    entries = _entries(plan)
    for name in added:
        entries[name]["bias"] = True
    return SpectrimConfig(
        layers=entries,
        split_experts=split_experts,
        untied=untied,
        provenance=provenance_of(plan),
        removed_experts={
            name: {"router": block.router, "removed": list(block.removed)}
            for name, block in plan.experts.items()
        },
    )


def provenance_of(plan: Plan) -> dict[str, Any]:
    """Return how a model compressed by `plan` was made, for its config."""
    return {"plan": without_layers(plan), "versions": versions()}


def _share(model: nn.Module, decomposition: Decomposition, ranks: dict[str, int]) -> None:
    """Put layers on one basis in place of each group's members."""
    factors, by_module = decomposition.expand_groups(ranks)
    parts = {name: factors[name].truncated(rank) for name, rank in by_module.items()}
    biases = {
        name: factors[name].bias(rank, get_bias(model.get_submodule(name)))
        for name, rank in by_module.items()
    }
    right = next(right for _, right in parts.values())
    share_basis(model, {name: left for name, (left, _) in parts.items()}, right, biases)


def _entries(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the checkpoint config's entry of each module."""
    entries: dict[str, dict[str, Any]] = {}
    for name, rank in plan.ranks.items():
        first, *others = plan.members(name)
        entries[first] = {"kind": SHARED if others else plan.layer, "rank": rank}
        entries |= {other: entries[first] | {"basis": first} for other in others}
    return entries


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Raise CheckpointError unless `model`, its experts split, has the plan's layers."""
    modules = dict(model.named_modules())
    for name, layer in plan.layers.items():
        for module, rows in (layer.members or {name: layer.shape[0]}).items():
            if module not in modules or not is_linear(modules[module]):
                raise _foreign(module)
            if get_shape(modules[module]) != (rows, layer.shape[1]):
                raise CheckpointError(
                    f"'{module}' has shape {(rows, layer.shape[1])} in the plan and "
                    f"{get_shape(modules[module])} in the model"
                )
    for name, block in plan.experts.items():
        _check_block(modules, name, block)
    removed = {name: block.removed for name, block in plan.experts.items()}
    if gone := [n for n in plan.modules if not is_left(n, removed)]:
        raise CheckpointError(
            f"the plan has the layer '{gone[0]}' of an expert that it removes; delete one"
        )


def _check_block(modules: dict[str, nn.Module], name: str, block: ExpertPlan) -> None:
    experts = modules.get(name)
    if not isinstance(experts, SplitExperts) or block.router not in modules:
        raise _foreign(name)
    if experts.kept != tuple(range(block.count)):
        raise CheckpointError(
            f"'{name}' has {block.count} experts in the plan and {len(experts.kept)} in the "
            "model"
        )


def _check_fits(model: nn.Module, decomposition: Decomposition, plan: Plan) -> None:
    check_plan(model, plan)
    for name in plan.ranks:
        if name not in decomposition.factors:
            raise _foreign(name)
        if list(decomposition.groups.get(name, {}).items()) != list(
            plan.layers[name].members.items()
        ):
            raise CheckpointError(
                f"the plan's members of '{name}' differ from the decomposition's in names or "
                "order; make the plan from the same decomposition with `spectrim plan`"
            )
    if not plan.ranks and not plan.experts:
        warnings.warn("the plan leaves every layer dense; no weight is removed", stacklevel=3)


def _foreign(name: str) -> CheckpointError:
    return CheckpointError(
        f"the plan contains layer '{name}', which is not in this model or decomposition; "
        "make the plan from the same model with `spectrim plan`"
    )


def shared_copy(model: M) -> M:
    """Copy the module tree around the same tensors."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return deep_copy(model, memo)


def untie_head(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Give a tied output embedding that will be compressed its own weight."""
    if not _ties_planned_head(model, names):
        return False
    head: Any = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return True


def _ties_planned_head(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Return whether the output embedding is tied and among the layers `names`."""
    head = model.get_output_embeddings()
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    return tied and head is not None and any(model.get_submodule(n) is head for n in names)


def cast_for_saving(model: P, dtype: torch.dtype) -> P:
    """Return `model` if it is in `dtype`, else a copy with its stored tensors in `dtype`.

    Tensors that no checkpoint holds, like the rotary frequencies, stay: a loader computes
    them in float32. Raise ModelError for a tensor whose values do not fit into `dtype`.
    """
    if next(model.parameters()).dtype == dtype:
        return model
    copied = deep_copy(model, {})
    stored = copied.state_dict().keys()
    for name, tensor in chain(copied.named_parameters(), copied.named_buffers()):
        if name in stored and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    copied.config.dtype = dtype
    check_weights(copied, overflow_remedy(dtype))
    return copied


def without_layers(plan: Plan) -> dict[str, Any]:
    return {key: value for key, value in plan.to_dict().items() if key != "layers"}
