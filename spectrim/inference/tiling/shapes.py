"""Shape and dtype of a call's result, computed on the meta device and cached.

A prompt makes the same few dozen calls in every block, and on the meta device each takes as
long as a small product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spectrim.inference.tiling.nodes import Node

MOST = 4096


@dataclass(frozen=True)
class _Like:
    """A placeholder for a tensor."""

    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class _Constant:
    """A constant with its type, since 1 equals 1.0 and True."""

    value: Any
    kind: type


def result(function: Any, arguments: Any, options: Mapping[str, Any]) -> Tensor:
    """Return the result's shape and dtype, as a meta tensor that must not be changed."""
    given, named = _key(arguments), tuple((name, _key(o)) for name, o in options.items())
    try:
        return _remembered(function, given, named)
    except TypeError:  # an argument that cannot be looked up
        return _result(function, given, named)


def _result(function: Any, given: Any, named: tuple[tuple[str, Any], ...]) -> Tensor:
    made = function(*_as_meta(given), **{name: _as_meta(option) for name, option in named})
    assert isinstance(made, Tensor)
    return made


_remembered = lru_cache(MOST)(_result)


def _key(given: Any) -> Any:
    if isinstance(given, Node):
        given = given.meta
    if isinstance(given, Tensor):
        return _Like(given.shape, given.dtype)
    if isinstance(given, (tuple, list)) and not isinstance(given, torch.Size):
        return tuple(_key(each) for each in given)
    return _Constant(given, type(given))


def _as_meta(key: Any) -> Any:
    if isinstance(key, _Like):
        return torch.empty(key.shape, dtype=key.dtype, device="meta")
    return key.value if isinstance(key, _Constant) else tuple(_as_meta(each) for each in key)
