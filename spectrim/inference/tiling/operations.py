"""The calls on a deferred tensor that can be deferred too, and their nodes.

An unrecognized call is not an error: the tensor is computed, and the call is executed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectrim.inference.tiling.attention import ROLES as ATTENTION
from spectrim.inference.tiling.attention import Attention, Settings, swap_roles
from spectrim.inference.tiling.embedding import Ids
from spectrim.inference.tiling.kernels import KernelAttention, KernelLinear
from spectrim.inference.tiling.nodes import (
    Applied,
    Joined,
    Linear,
    Node,
    Pointwise,
    Split,
    nodes_in,
)
from spectrim.inference.tiling.output_factor import Second
from spectrim.inference.tiling.shapes import result
from spectrim.inference.tiling.tile import FEATURES, HEADS, Roles

Given = tuple[Any, ...]
Rule = Callable[[Callable[..., Tensor], Given, dict[str, Any]], Node | None]

_ACTIVATIONS = """silu gelu relu elu selu celu mish softplus hardswish hardsigmoid leaky_relu
relu6 tanh sigmoid logsigmoid"""
_ARITHMETIC = """erf exp log square sqrt rsqrt reciprocal neg negative abs clamp pow mul
multiply add sub subtract div divide true_divide maximum minimum float half bfloat16 double
contiguous type_as __rsub__ __rpow__ __rtruediv__ __rdiv__"""
POINTWISE = frozenset([*_ACTIVATIONS.split(), *_ARITHMETIC.split()])


def defer(
    function: Callable[..., Tensor], arguments: Given, options: Mapping[str, Any]
) -> Node | None:
    """Return the node of a call on nodes, or None if their tensors have to be computed."""
    name = getattr(function, "__name__", "")
    rule = _pointwise if name in POINTWISE else RULES.get(name)
    if rule is not None and not any(nodes_in([arguments, list(options.values())])):
        return None
    return rule(function, arguments, dict(options)) if rule is not None else None


def _pointwise(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    if options.get("inplace") or "out" in options or any(nodes_in(list(options.values()))):
        return None
    meta = result(function, arguments, options)
    roles = _common_roles([*nodes_in(arguments)], meta)
    if roles is None:
        return None
    return Pointwise(_with(function, options), arguments, meta, roles)


def _common_roles(nodes: list[Node], meta: Tensor) -> Roles | None:
    """Return the result's axis roles; None if they contradict each other or none is left."""
    roles: list[Any] = [None] * meta.dim()
    for node in nodes:
        first = meta.dim() - node.meta.dim()
        for axis, role in enumerate(node.roles, first):
            length = node.meta.shape[axis - first]
            if role is None or length != meta.shape[axis]:
                if role is not None and length != 1:
                    return None
                continue
            if roles[axis] not in (None, role):
                return None
            roles[axis] = role
    return tuple(roles) if {"batch", "token"} <= set(roles) else None


def _cast(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    """Defer `to` another dtype, not to another device."""
    asked = [*arguments[1:], *options.values()]
    dtypes = bool(asked) and all(isinstance(a, torch.dtype) for a in asked)
    return _pointwise(function, arguments, options) if dtypes else None


def _dropout(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    given = _named(functional.dropout, arguments, options)
    return arguments[0] if given["training"] is False and not given["inplace"] else None


def _per_token(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    """Defer a norm over the last axis."""
    given = arguments[1] if len(arguments) > 1 else ()
    shape: Any = options.get("normalized_shape", given)
    x = arguments[0]
    if not isinstance(x, Node) or len(shape) != 1 or x.roles[-1] not in (None, "feature"):
        return None
    meta = result(function, arguments, options)
    return Applied(_with(function, options), arguments, meta, x.roles)


def _mean(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    x = arguments[0]
    axis = options.get("dim", arguments[1] if len(arguments) > 1 else None)
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    last = axis in (-1, x.meta.dim() - 1)
    keeps = options.get("keepdim", len(arguments) > 2 and arguments[2])
    if not last or not keeps or x.roles[-1] not in (None, "feature"):
        return None
    meta = result(function, arguments, options)
    return Applied(_with(function, options), arguments, meta, (*x.roles[:-1], None))


def _embedding(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    given = _named(functional.embedding, arguments, options)
    ids, weight = given["input"], given["weight"]
    if not isinstance(ids, Ids) or not isinstance(weight, Tensor) or given["max_norm"]:
        return None
    meta = torch.empty((*ids.meta.shape, weight.shape[1]), dtype=weight.dtype, device="meta")
    return Applied(functional.embedding, (ids, weight), meta, FEATURES)


def _linear(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    """Defer a linear layer; after attention compute it at once.

    A row's tokens are all available there, and the next layers read the result.
    """
    given = _named(_linear_signature, arguments, options)
    x, weight = given["input"], given["weight"]
    if not isinstance(x, Node) or x.roles != FEATURES or not isinstance(weight, Tensor):
        return None
    shape = (*x.meta.shape[:-1], weight.shape[0])
    meta = torch.empty(shape, dtype=x.meta.dtype, device="meta")
    kind = KernelLinear if _by_kernel([x]) else Linear
    node = kind(x, weight, given["bias"], meta)
    if node.mixes_tokens:
        node.whole()
    return node


def _view(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    x = arguments[0]
    if options or any(isinstance(a, torch.dtype) for a in arguments[1:]):
        return None
    meta = result(torch.reshape, (x, _sizes(arguments[1:])), {})
    if meta.shape == x.meta.shape:
        return x if isinstance(x, Node) else None
    same = meta.shape[:2] == x.meta.shape[:2]
    if x.roles == FEATURES and meta.dim() == 4 and same:
        return Split(function, (x,), meta, HEADS)
    if x.roles == HEADS and meta.dim() == 3 and same:
        return Joined(function, (x,), meta, FEATURES)
    return None


def _transpose(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    x = arguments[0]
    if options or len(arguments) != 3:
        return None
    first, second = (axis % x.meta.dim() for axis in arguments[1:])
    meta = x.meta.transpose(first, second)
    return Applied(function, (x, first, second), meta, swap_roles(x.roles, first, second))


def _last_axis(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    """Defer x[..., a:b] of each head."""
    x, index = arguments
    simple = isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis
    if not simple or not isinstance(index[1], slice) or x.roles[-1] is not None:
        return None
    return Applied(_sliced, (x, index[1]), x.meta[index], x.roles)


def _sliced(x: Tensor, last: slice) -> Tensor:
    return x[..., last]


def _cat(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    pieces = arguments[0]
    axis = options.get("dim", arguments[1] if len(arguments) > 1 else 0)
    if not all(isinstance(piece, Node) for piece in pieces):
        return None
    roles = {piece.roles for piece in pieces}
    if len(roles) > 1 or axis not in (-1, len(pieces[0].roles) - 1) or pieces[0].roles[-1]:
        return None
    meta = result(function, (list(pieces), axis), {})
    return Applied(torch.cat, (list(pieces), axis), meta, pieces[0].roles)


def _attention(function: Any, arguments: Given, options: dict[str, Any]) -> Node | None:
    given = _named(_attention_signature, arguments, options)
    q, k, v, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    roles = [x.roles for x in (q, k, v) if isinstance(x, Node)]
    four = all((x.meta if isinstance(x, Node) else x).dim() == 4 for x in (q, k, v))
    rows = {x.meta.shape[0] if isinstance(x, Node) else x.shape[0] for x in (q, k, v)}
    if given["dropout_p"] or not four or len(rows) > 1 or set(roles) != {ATTENTION}:
        return None
    if isinstance(mask, Node) or (mask is not None and mask.dim() != 4):
        return None
    for x in (q, k, v):
        if isinstance(x, Node):
            _make_thin_inputs(x)
    settings = Settings(mask, given["is_causal"], given["scale"], given["enable_gqa"])
    kind = (
        KernelAttention
        if _by_kernel([x for x in (q, k, v) if isinstance(x, Node)])
        else Attention
    )
    return kind((q, k, v), settings)


def _by_kernel(nodes: list[Node]) -> bool:
    """Return whether a layer that they come from was fused with kernels."""
    return any(n.kernels if isinstance(n, Second) else _by_kernel(n.inputs) for n in nodes)


def _make_thin_inputs(node: Node) -> None:
    """Compute each z that would otherwise be recomputed for every group of heads."""
    for inner in node.inputs:
        _make_thin_inputs(inner)
    if isinstance(node, Second) and isinstance(node.z, Node):
        node.z = node.z.whole()
        node.inputs = []


RULES: dict[str, Rule] = {
    "to": _cast,
    "dropout": _dropout,
    "embedding": _embedding,
    "layer_norm": _per_token,
    "rms_norm": _per_token,
    "mean": _mean,
    "linear": _linear,
    "view": _view,
    "reshape": _view,
    "transpose": _transpose,
    "__getitem__": _last_axis,
    "cat": _cat,
    "scaled_dot_product_attention": _attention,
}


def _linear_signature(input: Any, weight: Any, bias: Any = None) -> None: ...


def _attention_signature(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> None: ...  # fmt: skip


def _named(signature: Any, arguments: Given, options: Mapping[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(signature).bind(*arguments, **options)
    bound.apply_defaults()
    return dict(bound.arguments)


def _with(function: Any, options: Mapping[str, Any]) -> Callable[..., Tensor]:
    return partial(function, **options) if options else function


def _sizes(given: Given) -> tuple[int, ...]:
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given
