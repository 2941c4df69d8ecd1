"""Every dense linear layer seen as a weight (out, in) and a bias (out,) or None."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

DENSE_TYPES = (nn.Linear, Conv1D)
"""`nn.Linear` stores (out, in); GPT-2's `Conv1D` stores (in, out)."""


def is_dense(module: nn.Module) -> bool:
    return isinstance(module, DENSE_TYPES)


def weight_of(module: nn.Module) -> Tensor:
    """The stored weight as a view of shape (out, in)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The stored bias, without its gradient."""
    bias = module.bias
    return bias.detach() if isinstance(bias, Tensor) else None


def shape_of(module: nn.Module) -> tuple[int, int]:
    out_features, in_features = weight_of(module).shape
    return out_features, in_features


@torch.no_grad()
def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Copy `weight` (out, in) into the module, in the module's dtype."""
    weight_of(module).copy_(weight)
