"""Dense linear layers as a weight (out, in) and a bias (out,) or None."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

DENSE_TYPES = (nn.Linear, Conv1D)
"""`nn.Linear` stores (out, in); GPT-2's `Conv1D` stores (in, out)."""


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, DENSE_TYPES)


def get_weight(module: nn.Module) -> Tensor:
    """Return the stored weight as a view of shape (out, in)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return as_stored(module, weight)


def as_stored(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight (out, in) in the order in which the module stores its own."""
    return weight.T if isinstance(module, Conv1D) else weight


def get_bias(module: nn.Module) -> Tensor | None:
    """Return the stored bias, without its gradient."""
    bias = module.bias
    return bias.detach() if isinstance(bias, Tensor) else None


def get_shape(module: nn.Module) -> tuple[int, int]:
    out_features, in_features = get_weight(module).shape
    return out_features, in_features


@torch.no_grad()
def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Copy `weight` (out, in) into the module, in the module's dtype."""
    get_weight(module).copy_(weight)


_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 5e-2


def agree(output: Any, expected: Any) -> bool:
    """Return whether two outputs are the same tensor to the rounding of their dtype."""
    if not isinstance(output, Tensor) or not isinstance(expected, Tensor):
        return False
    if output.shape != expected.shape:
        return False
    tolerance = _TOLERANCE.get(expected.dtype, _HALF_TOLERANCE)
    error = (output.double() - expected.double()).norm()
    return bool(error <= tolerance * expected.double().norm())
