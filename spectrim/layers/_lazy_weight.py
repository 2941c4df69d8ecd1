"""The weight of a compact layer for models that read it: multiplied out once its values are.

Some models ask a layer for its weight's dtype at every call (T5's last feed-forward layer).
That must not cost a product of the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_DESCRIBED = {
    getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "layout")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point}
"""What is known without the values."""


class LazyWeight(Tensor):
    """A tensor (out, in) whose values `multiply()` gives when an operation needs them."""

    _multiply: Callable[[], Tensor]

    @staticmethod
    def of(
        shape: tuple[int, int], stored: Tensor, dtype: torch.dtype, multiply: Any
    ) -> LazyWeight:
        """Return the weight of a layer on the device of its `stored` tensors."""
        made: LazyWeight = Tensor._make_wrapper_subclass(
            LazyWeight, shape, dtype=dtype, device=stored.device
        )
        made._multiply = multiply
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _DESCRIBED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*tree_map(_filled, args), **tree_map(_filled, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map(_filled, args), **tree_map(_filled, kwargs or {}))


def _filled(value: Any) -> Any:
    return value._multiply() if isinstance(value, LazyWeight) else value
