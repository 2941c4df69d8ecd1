"""A tensor that is computed when its whole is needed, and in tiles until then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from spectrim.inference.tiling.nodes import Node
from spectrim.inference.tiling.operations import defer

_ABOUT = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_cpu",
                 "is_meta", "layout", "is_sparse", "is_quantized", "is_nested")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex,
     Tensor.is_inference, Tensor.__len__}  # fmt: skip
"""Operations that need no numbers."""


class LazyTensor(Tensor):
    """A tensor for a node: deferrable calls return another one, all others compute it first."""

    node: Node

    @staticmethod
    def __new__(cls, node: Node) -> LazyTensor:
        made: LazyTensor = Tensor._make_wrapper_subclass(
            cls, node.meta.shape, dtype=node.meta.dtype, device=node.device
        )
        made.node = node
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **options)
        node = defer(func, _nodes(args), _nodes(options))
        if node is None:
            return func(*materialize(args), **materialize(options))
        return LazyTensor(node) if node.known is None else node.known

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*materialize(args), **materialize(kwargs or {}))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Deferred({tuple(self.shape)}, {type(self.node).__name__})"


def materialize(values: Any) -> Any:
    """Return the same (nested) values with every tensor in them computed."""
    return tree_map(lambda v: v.node.whole() if isinstance(v, LazyTensor) else v, values)


def _nodes(values: Any) -> Any:
    """Replace lazy tensors by nodes in arguments, lists, options; faster than `tree_map`."""
    if isinstance(values, LazyTensor):
        return _node(values)
    if isinstance(values, dict):
        return {name: _nodes(value) for name, value in values.items()}
    return type(values)(map(_nodes, values)) if type(values) in (tuple, list) else values


def _node(tensor: LazyTensor) -> Node | Tensor:
    return tensor.node if tensor.node.known is None else tensor.node.known
