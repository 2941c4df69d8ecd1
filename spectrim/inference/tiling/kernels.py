"""Expressions that one kernel computes at once, recognized by their form.

    R_d (act(gate) * up) + c    R_d act(up) + c      feed-forward
    softmax(q k^T) v                                 attention, q and k possibly rotated

with gate, up, q, k and v deferred outputs of factored layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectrim.inference.kernels import flash_attention, flash_ffn, second_of
from spectrim.inference.kernels.dispatch import runs_kernel
from spectrim.inference.kernels.flash_attention import Heads
from spectrim.inference.tiling.attention import Attention, Settings
from spectrim.inference.tiling.nodes import Applied, Linear, Node, Split, Values
from spectrim.inference.tiling.output_factor import Second
from spectrim.inference.tiling.tile import FEATURES, Tile

Turns = tuple[Tensor, Tensor]
"""Cosines and sines (B or 1, T, width)."""


class KernelLinear(Linear):
    """A linear layer on a hidden state, by `flash_ffn` if the expression has its form."""

    def make(self, values: Values, tile: Tile) -> Tensor:
        x, weight, bias = self.arguments
        parts = _hidden(x) if runs_kernel(weight) else None
        if parts is None:
            return super().make(values, tile)
        activation, gate, up = parts
        given = None if gate is None else _factors(gate, values, tile)
        return flash_ffn(_factors(up, values, tile), given, (weight, bias), activation)


class KernelAttention(Attention):
    """Attention of all heads of the tile's rows, by `flash_attention` if supported."""

    def make(self, values: Values, tile: Tile) -> Tensor:
        assert self.settings is not None
        found = [head for head in map(_head, self.given) if head is not None]
        if len(found) < 3 or not self._suits_kernel(found):
            return super().make(values, tile)
        _, count, _, width = self.meta.shape
        heads = Heads(
            count, count // self.shared, width, self.settings.is_causal, self.settings.scale
        )
        z, seconds = zip(*(_factors(h.second, values, tile) for h in found), strict=True)
        mask, turns = self.settings.mask, found[1].turns
        keys = None if mask is None else _rows(mask[:, 0, 0], tile)
        if turns is not None:
            turns = (_rows(turns[0], tile), _rows(turns[1], tile))
        y = flash_attention(z, seconds, heads, keys, turns)
        return y.unflatten(-1, (count, width)).transpose(1, 2)

    def _suits_kernel(self, found: list[_Head]) -> bool:
        """Return whether q and k are both rotated or both not, and queries have no mask."""
        q, k, v = found
        turned = (q.turns is None) == (k.turns is None) and v.turns is None
        square = self.keys == self.meta.shape[2]
        z = q.second.z
        there = isinstance(z, Tensor) and runs_kernel(z)
        return turned and square and there and _is_key_mask(self.settings)


def _is_key_mask(settings: Settings | None) -> bool:
    """Return whether the mask is the same for all heads and queries, or absent."""
    mask = None if settings is None else settings.mask
    if mask is None:
        return True
    if mask.dtype != torch.bool or mask.shape[1] != 1:
        return False
    return mask.stride(2) == 0 or torch.equal(mask, mask[:, :, :1].expand_as(mask))


@dataclass(frozen=True)
class _Head:
    second: Second
    turns: Turns | None = None


def _hidden(node: Any) -> tuple[Any, Second | None, Second] | None:
    """Return activation, gate and up."""
    if (activated := _activated(node)) is not None:
        return activated[0], None, activated[1]
    pair = _operands(node, "mul")
    for act, up in (pair, pair[::-1]) if pair else ():
        if isinstance(up, Second) and (activated := _activated(act)) is not None:
            return activated[0], activated[1], up
    return None


def _activated(node: Any) -> tuple[str, Second] | None:
    name, options = _call(node)
    if name not in ("silu", "gelu", "relu") or not isinstance(node.arguments[0], Second):
        return None
    approximate = options.get("approximate", "none")
    if approximate == "tanh":
        name = "gelu_tanh"
    return (name, node.arguments[0]) if node.known is None else None


def _head(node: Any) -> _Head | None:
    """Return a layer's output split into heads, before or after a rotation."""
    name, _ = _call(node)
    if name == "transpose" and isinstance(node.arguments[0], Split):
        layer = next(iter(node.arguments[0].inputs), None)
        return _Head(layer) if isinstance(layer, Second) else None
    sides = [_operands(side, "mul") for side in _operands(node, "add") or ()]
    if len(sides) != 2 or not all(sides):
        return None
    (x, cosines), (turned, sines) = sides  # type: ignore[misc]
    head = _head(x)
    if head is None or head.turns is not None or not _is_half_turn(turned, x):
        return None
    turns = [turn[:, 0] for turn in (cosines, sines) if turn.dim() == 4 and turn.shape[1] == 1]
    return _Head(head.second, (turns[0], turns[1])) if len(turns) == 2 else None


def _is_half_turn(node: Any, x: Node) -> bool:
    """Return whether the node is (-x2, x1) of the halves of x."""
    name, _ = _call(node)
    if name != "cat" or len(node.arguments[0]) != 2:
        return False
    minus, first = node.arguments[0]
    half = x.meta.shape[-1] // 2
    if _call(minus)[0] not in ("neg", "negative") or x.meta.shape[-1] % 2:
        return False
    wanted = ((minus.arguments[0], slice(half, None)), (first, slice(None, half)))
    return all(
        _call(part)[0] == "_sliced" and part.arguments[0] is x and part.arguments[1] == span
        for part, span in wanted
    )


def _operands(node: Any, name: str) -> tuple[Any, Any] | None:
    found, options = _call(node)
    arguments: tuple[Any, ...] = node.arguments if found == name else ()
    return (arguments[0], arguments[1]) if len(arguments) == 2 and not options else None


def _call(node: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a deferred call."""
    if not isinstance(node, Applied) or node.known is not None:
        return "", {}
    function: Any = node.function
    if isinstance(function, partial):
        return function.func.__name__, dict(function.keywords)
    return getattr(function, "__name__", ""), {}


def _factors(second: Second, values: Values, tile: Tile) -> tuple[Tensor, Any]:
    assert second.layer is not None
    assert second.z is not None
    whole = tile.whole_width()
    return values.of(second.z, whole, FEATURES), second_of(second.layer)


def _rows(tensor: Tensor, tile: Tile) -> Tensor:
    return tensor if len(tensor) == 1 else tensor[slice(*tile.batch)]
