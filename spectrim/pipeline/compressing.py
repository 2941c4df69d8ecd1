"""From a plan to a compressed model."""

from __future__ import annotations

import copy
import warnings
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.errors import CheckpointError
from spectrim.hub import SpectrimConfig, mark_compressed
from spectrim.layers import LAYERS, layer_class
from spectrim.pipeline.decomposing import versions
from spectrim.planning import Decomposition, Plan
from spectrim.surgery.adapters import bias_of, is_dense, shape_of
from spectrim.surgery.experts import split_expert_names
from spectrim.surgery.rewrite import replace_layer


def compress(
    model: PreTrainedModel,
    decomposition: Decomposition,
    plan: Plan,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A compressed copy of `model`; tensors that do not change are shared with it.

    dtype: of the whole result; None keeps the model's. Raises CheckpointError when plan,
    decomposition and model do not belong together.
    """
    _check_fits(model, decomposition, plan)
    result = _shared_copy(model)
    untied = _untie_head(result, plan)
    kind, options = layer_class(plan.layer), LAYERS.options(plan.layer, plan.layer_options)
    for name, rank in plan.ranks.items():
        factors, bias = decomposition.factors[name], bias_of(result.get_submodule(name))
        replace_layer(result, name, kind.from_full(factors, rank, bias, options))
    if dtype is not None:
        result = stored_in(result, dtype)
    result.config.dtype = next(result.parameters()).dtype
    config = SpectrimConfig(
        layers={n: {"kind": plan.layer, "rank": r} for n, r in plan.ranks.items()},
        split_experts=split_expert_names(result),
        untied=untied,
        provenance={"plan": _without_layers(plan), "versions": versions()},
    )
    mark_compressed(result, config)
    return result


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Raises CheckpointError unless `model`, its experts split, has the plan's layers."""
    modules = dict(model.named_modules())
    for name, layer in plan.layers.items():
        if name not in modules or not is_dense(modules[name]):
            raise _foreign(name)
        if shape_of(modules[name]) != tuple(layer.shape):
            raise CheckpointError(
                f"the plan gives '{name}' the shape {tuple(layer.shape)}, "
                f"the model has {shape_of(modules[name])}"
            )


def _check_fits(model: nn.Module, decomposition: Decomposition, plan: Plan) -> None:
    check_plan(model, plan)
    for name in plan.ranks:
        if name not in decomposition.factors:
            raise _foreign(name)
    if not plan.ranks:
        warnings.warn("the plan leaves every layer dense; nothing is compressed", stacklevel=3)


def _foreign(name: str) -> CheckpointError:
    return CheckpointError(
        f"the plan names layer '{name}', which this model or decomposition has not; "
        "make the plan from the same model with `spectrim plan`"
    )


def _shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree around the same tensors."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def _untie_head(model: PreTrainedModel, plan: Plan) -> bool:
    """Give a tied output embedding that is to be compressed a weight of its own."""
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return False
    if all(model.get_submodule(name) is not head for name in plan.ranks):
        return False
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return True


def stored_in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """`model`, or unless it is in `dtype` a copy with the tensors that a checkpoint holds in
    it. Others, like the rotary frequencies, stay: a loader computes them in float32."""
    if next(model.parameters()).dtype == dtype:
        return model
    copied = copy.deepcopy(model)
    stored = copied.state_dict().keys()
    for name, tensor in chain(copied.named_parameters(), copied.named_buffers()):
        if name in stored and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    copied.config.dtype = dtype
    return copied


def _without_layers(plan: Plan) -> dict[str, Any]:
    return {key: value for key, value in plan.to_dict().items() if key != "layers"}
