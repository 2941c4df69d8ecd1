"""Equal bytes: the largest model of a recipe whose compressed layers fit in their budget.

    bytes(layer) = all its tensors as stored: weights in the dtype saved, indices, biases
    allowed      = budget * dense weights in that dtype + the original's biases

A plan counts weights alone. If indices or new biases exceed the allowance, a new plan is made
with that much less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.models.linear import get_bias
from spectrim.pipeline.compress import CompressionResult, cut
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, Plan, make_plan

_ATTEMPTS = 5


@dataclass(frozen=True)
class Allowance:
    """Bytes of the layers' dense weights, of their biases, and of both by the budget."""

    dense: int
    biases: int
    budget: float

    @property
    def bytes(self) -> int:
        return int(self.budget * self.dense + 1e-6) + self.biases

    def kept(self, layer_bytes: int) -> float:
        return (layer_bytes - self.biases) / self.dense


def allowance(
    model: PreTrainedModel, plan: Plan, budget: float, dtype: torch.dtype
) -> Allowance:
    """Return what the planned layers of the original `model` may take in `dtype`."""
    weights = sum(layer.shape[0] * layer.shape[1] for layer in plan.layers.values())
    biases = (get_bias(model.get_submodule(name)) for name in plan.modules)
    numbers = sum(bias.numel() for bias in biases if bias is not None)
    return Allowance(weights * dtype.itemsize, numbers * dtype.itemsize, budget)


def fit_to_budget(
    original: LoadedModel, decomposition: Decomposition, recipe: Recipe
) -> CompressionResult:
    """Return the largest model, before refinement, whose stored layers fit the budget.

    Raises InputError if no plan does.
    """
    budget, dtype = recipe.budget, original.dtype_for(recipe)
    for _ in range(_ATTEMPTS):
        smaller_recipe = original.with_save_dtype(recipe.at_budget(budget))
        plan = make_plan(decomposition, smaller_recipe.planning)
        result = cut(original, decomposition, plan, recipe)
        allowed = allowance(original.model, plan, recipe.budget, dtype)
        over = _stored_bytes(result, allowed, dtype) - allowed.bytes
        if over <= 0:
            break
        budget -= over / allowed.dense
    return replace(result, recipe=recipe)


def bytes_below(names: Iterable[str], sizes: dict[str, int]) -> int:
    """Return the bytes of the tensors (name -> bytes) that belong to modules of these names."""
    prefixes = tuple(f"{name}." for name in names)
    return sum(size for name, size in sizes.items() if name.startswith(prefixes))


def _stored_bytes(result: CompressionResult, allowed: Allowance, dtype: torch.dtype) -> int:
    """Return the bytes of the planned layers as stored.

    Quantized weights take what the plan counts; indices and biases are unchanged.
    """
    tensors = [
        (key, tensor)
        for name in result.plan.modules
        for key, tensor in _state(result.model, name).items()
    ]
    if result.recipe.quantization is None:
        return sum(tensor.numel() * _itemsize(tensor, dtype) for _, tensor in tensors)
    others = (t for key, t in tensors if not key.endswith("weight"))
    weights = round(result.plan.kept * allowed.dense)
    return weights + sum(tensor.numel() * _itemsize(tensor, dtype) for tensor in others)


def _state(model: PreTrainedModel, name: str) -> dict[str, Any]:
    return model.get_submodule(name).state_dict()


def _itemsize(tensor: Tensor, dtype: torch.dtype) -> int:
    return dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
