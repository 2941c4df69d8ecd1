"""Equal bytes: the largest model of a recipe whose compressed layers fit in their budget.

    bytes(layer) = all its tensors as stored: weights in the dtype saved, indices, biases
    allowed      = budget * dense weights in that dtype + the original's biases

A plan counts weights alone. Where indices or new biases exceed the allowance, the plan is made
again with that much less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.models.linear import get_bias
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import Decomposition, Plan, make_plan

_ATTEMPTS = 5


@dataclass(frozen=True)
class Allowance:
    """In bytes: of the layers' dense weights, of their biases, and of both by the budget."""

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
    """What the planned layers of the original `model` may take in `dtype`."""
    weights = sum(layer.shape[0] * layer.shape[1] for layer in plan.layers.values())
    biases = (get_bias(model.get_submodule(name)) for name in plan.modules)
    numbers = sum(bias.numel() for bias in biases if bias is not None)
    return Allowance(weights * dtype.itemsize, numbers * dtype.itemsize, budget)


def fit_to_budget(
    model: PreTrainedModel, decomposition: Decomposition, recipe: Recipe, dtype: torch.dtype
) -> tuple[Plan, PreTrainedModel]:
    """The plan and the model, in `model`'s own dtype, whose layers fit when saved in `dtype`.

    Raises InputError when no plan does.
    """
    budget = recipe.budget
    for _ in range(_ATTEMPTS):
        plan = make_plan(decomposition, recipe.at_budget(budget).planning)
        smaller = replace_layers(model, decomposition, plan)
        allowed = allowance(model, plan, recipe.budget, dtype)
        over = sum(_stored(smaller, plan.modules, dtype)) - allowed.bytes
        if over <= 0:
            break
        budget -= over / allowed.dense
    return plan, smaller


def bytes_below(names: Iterable[str], sizes: dict[str, int]) -> int:
    """Of the tensors (name -> bytes) that belong to modules of these names."""
    prefixes = tuple(f"{name}." for name in names)
    return sum(size for name, size in sizes.items() if name.startswith(prefixes))


def _stored(model: PreTrainedModel, names: Iterable[str], dtype: torch.dtype) -> Iterable[int]:
    for name in names:
        state: dict[str, Any] = model.get_submodule(name).state_dict()
        for tensor in state.values():
            yield tensor.numel() * _itemsize(tensor, dtype)


def _itemsize(tensor: Tensor, dtype: torch.dtype) -> int:
    return dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
