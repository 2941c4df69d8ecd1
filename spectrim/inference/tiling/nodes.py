"""Expressions over tokens that are evaluated tile by tile.

A node is a deferred tensor: an operation and its inputs. Every node but attention works on
single tokens, so any tile of tokens can be computed from the same tile of its inputs; what
several nodes of one expression share is computed once per tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectrim.inference.tiling.tile import FEATURES, ROWS, Roles, Tile, part, tiles


class Node(ABC):
    """A deferred tensor.

    meta: its shape and dtype, as a tensor on the meta device. known: the whole, once computed.
    PARTIAL: whether it can compute some of its features alone.
    """

    PARTIAL = False

    def __init__(self, meta: Tensor, roles: Roles, device: torch.device, inputs: list[Node]):
        self.meta = meta
        self.roles = roles
        self.device = device
        self.inputs = inputs
        self.known: Tensor | None = None

    @abstractmethod
    def make(self, values: Values, tile: Tile) -> Tensor:
        """Compute the tile of this node from those of its inputs."""

    @property
    def mixes_tokens(self) -> bool:
        """Return whether a tile needs its rows' other tokens."""
        return self.known is None and any(node.mixes_tokens for node in self.inputs)

    def whole(self) -> Tensor:
        """Compute the whole tile by tile once, then keep it in place of the inputs."""
        if self.known is None:
            self.known = self._filled()
            self.inputs = []
            self.forget()
        return self.known

    @abstractmethod
    def forget(self) -> None:
        """Drop the inputs."""

    def _filled(self) -> Tensor:
        uses = Counter(id(n) for node in _distinct(self) for n in node.inputs)
        filled = torch.empty(self.meta.shape, dtype=self.meta.dtype, device=self.device)
        rows = ROWS.get(self.device.type, ROWS["cpu"])
        for tile in tiles(filled.shape, self.roles, rows, not self.mixes_tokens):
            part(filled, self.roles, tile).copy_(Values(uses).of(self, tile))
        return filled


class Values:
    """Values of one tile that will be used again. uses: how often, by node."""

    def __init__(self, uses: Counter[int]):
        self.uses = uses
        self._left = uses.copy()
        self._made: dict[tuple[int, Tile], Tensor] = {}

    def of(self, given: Node | Tensor, tile: Tile, roles: Roles = ()) -> Tensor:
        """Return the tile of a node or of an available tensor with the given axis roles."""
        if isinstance(given, Tensor):
            return part(given, roles, tile)
        if given.known is not None:
            return part(given.known, given.roles, tile)
        if tile.feature is not None and not given.PARTIAL:
            first, last = tile.feature
            return self.of(given, replace(tile, feature=None))[..., first:last]
        key = (id(given), tile)
        found = self._made.pop(key, None)
        found = given.make(self, tile) if found is None else found
        self._left[id(given)] -= 1
        if self._left[id(given)] > 0:
            self._made[key] = found
        return found


class Applied(Node):
    """A function of whole tokens. arguments: nodes, constants, and tensors without tokens."""

    def __init__(
        self, function: Callable[..., Tensor], arguments: tuple[Any, ...], meta: Tensor,
        roles: Roles,
    ):  # fmt: skip
        nodes = list(nodes_in(arguments))
        super().__init__(meta, roles, nodes[0].device, nodes)
        self.function: Callable[..., Tensor] | None = function
        self.arguments = arguments

    def make(self, values: Values, tile: Tile) -> Tensor:
        assert self.function is not None
        return self.function(*self._made(self.arguments, values, tile))

    def forget(self) -> None:
        self.function, self.arguments = None, ()

    def _made(self, arguments: Any, values: Values, tile: Tile) -> Any:
        if isinstance(arguments, (tuple, list)):
            return [self._made(argument, values, tile) for argument in arguments]
        return values.of(arguments, tile) if isinstance(arguments, Node) else arguments


class Pointwise(Applied):
    """An elementwise function; tensor arguments with tokens are tiled too."""

    def _made(self, arguments: Any, values: Values, tile: Tile) -> Any:
        if isinstance(arguments, Tensor):
            return part(arguments, self.roles, tile)
        return super()._made(arguments, values, tile)


class Split(Applied):
    """(B, T, O) split into heads (B, T, H, D); some heads need only their features."""

    def make(self, values: Values, tile: Tile) -> Tensor:
        width = self.meta.shape[-1]
        if tile.head is not None:
            first, last = tile.head
            tile = replace(tile, head=None, feature=(first * width, last * width))
        return values.of(self.inputs[0], tile).unflatten(-1, (-1, width))


class Joined(Applied):
    """Heads (B, T, H, D) joined side by side (B, T, O)."""

    def make(self, values: Values, tile: Tile) -> Tensor:
        return values.of(self.inputs[0], tile.whole_width()).flatten(2)


class Linear(Applied):
    """x W^T + b of every token."""

    def __init__(self, x: Node, weight: Tensor, bias: Tensor | None, meta: Tensor):
        super().__init__(torch.nn.functional.linear, (x, weight, bias), meta, FEATURES)


def nodes_in(arguments: Any) -> Iterator[Node]:
    if isinstance(arguments, Node):
        yield arguments
    elif isinstance(arguments, (tuple, list)):
        for argument in arguments:
            yield from nodes_in(argument)


def _distinct(root: Node) -> list[Node]:
    found: dict[int, Node] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) not in found and node.known is None:
            found[id(node)] = node
            waiting.extend(node.inputs)
    return list(found.values())
