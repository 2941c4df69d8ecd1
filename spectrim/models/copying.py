"""Copy models, those too that keep results of their computation on themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from spectrim.errors import ModelError

M = TypeVar("M", bound=nn.Module)


def deep_copy(model: M, memo: dict[int, Any] | None = None) -> M:
    """Return `copy.deepcopy(model, memo)`, without the graphs of tensors that were computed.

    A recurrent state that is kept as an attribute, say, is copied as a value. Raises ModelError
    for a model that holds what cannot be copied.
    """
    memo = {} if memo is None else memo
    for tensor in _computed_tensors(model):
        memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} holds an attribute that cannot be copied: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _computed_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors with a graph behind them, in attributes of any module and in what those hold."""
    seen: set[int] = set()
    for module in model.modules():
        for value in vars(module).values():
            yield from _tensors_in(value, seen)


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, str | int | float | type | None):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
        return
    if isinstance(value, nn.Module):
        return  # its turn comes
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple | set):
        inner = value
    elif hasattr(value, "__dict__") and not callable(value):
        inner = vars(value).values()
    for item in list(inner):
        yield from _tensors_in(item, seen)
