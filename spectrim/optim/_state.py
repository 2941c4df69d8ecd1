"""Count the bytes of an optimizer's state, and keep its number formats when it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_DEEPEST = 4


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Return what a step's closure returns, run with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def measure_state(optimizer: Optimizer) -> int:
    """Return the bytes of all tensors in the state, also of those inside lists and objects."""
    found = {id(t): t for state in optimizer.state.values() for t in _tensors(state, _DEEPEST)}
    return sum(t.numel() * t.element_size() for t in found.values())


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth:
        if isinstance(value, dict):
            parts = list(value.values())
        elif isinstance(value, list | tuple):
            parts = list(value)
        else:
            parts = list(getattr(value, "__dict__", {}).values())
        for part in parts:
            yield from _tensors(part, depth - 1)


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Return float32 for parameters of fewer bits: second moments of 8 bits would stall."""
    return torch.promote_types(parameter.dtype, torch.float32)


def restore_formats(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Put saved tensors back in their own number formats; torch casts them to the parameter's.

    Without it an index would come back as a float, and rounded where the parameter is half
    precision.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    for key, parameter in zip(keys, params, strict=True):
        for entry, value in state_dict["state"].get(key, {}).items():
            current = optimizer.state[parameter].get(entry)
            if isinstance(value, Tensor) and current.dtype != value.dtype:
                optimizer.state[parameter][entry] = value.detach().clone().to(current.device)
