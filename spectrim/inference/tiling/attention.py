"""softmax(q k^T) v of one row and a few heads at a time.

q, k and v of those heads are computed from their factors when needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectrim.inference.tiling.nodes import Node, Pointwise, Values
from spectrim.inference.tiling.tile import ROWS, Role, Roles, Tile

ROLES: Roles = ("batch", "head", "token", None)
_MASK: Roles = ("batch", "head", None, None)
BYTES = 2**22
"""Of one of q, k and v at a time; at least one head."""


@dataclass(frozen=True)
class Settings:
    """mask (B or 1, H or 1, T, S) or None; the rest as in torch's own attention."""

    mask: Tensor | None
    is_causal: bool
    scale: float | None
    enable_gqa: bool


class Attention(Node):
    """(B, H, T, D); q, k and v are nodes or tensors of that order."""

    def __init__(
        self, given: tuple[Node | Tensor, Node | Tensor, Node | Tensor], settings: Settings
    ):
        nodes = [g for g in given if isinstance(g, Node)]
        q, k, v = (g.meta if isinstance(g, Node) else g for g in given)
        meta = torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device="meta")
        super().__init__(meta, ROLES, nodes[0].device, nodes)
        self.given: tuple[Any, ...] = given
        self.keys, self.shared = k.shape[2], q.shape[1] // k.shape[1]
        self.settings: Settings | None = settings

    @property
    def mixes_tokens(self) -> bool:
        return self.known is None

    def make(self, values: Values, tile: Tile) -> Tensor:
        """Return all tokens of the tile's rows, stored as (B, T, H, D)."""
        rows = tile.batch[1] - tile.batch[0]
        _, heads, tokens, width = self.meta.shape
        made = torch.empty(
            (rows, tokens, heads, width), dtype=self.meta.dtype, device=self.device
        )
        together = max(1, BYTES // (rows * self.keys * width * made.itemsize)) * self.shared
        for first in range(0, heads, together):
            last = min(heads, first + together)
            made[:, :, first:last] = self._heads(values, tile, (first, last)).transpose(1, 2)
        return made.transpose(1, 2)

    def _heads(self, values: Values, tile: Tile, heads: tuple[int, int]) -> Tensor:
        assert self.settings is not None
        settings, tokens = self.settings, self.meta.shape[2]
        own = Tile(tile.batch, (0, tokens), heads)
        share = (heads[0] // self.shared, heads[1] // self.shared)
        theirs = Tile(tile.batch, (0, self.keys), share)
        q, k, v = self.given
        mask = settings.mask
        return functional.scaled_dot_product_attention(
            _queries(q, values, own),
            values.of(k, theirs, ROLES),
            values.of(v, theirs, ROLES),
            None if mask is None else values.of(mask, own, _MASK),
            is_causal=settings.is_causal,
            scale=settings.scale,
            enable_gqa=settings.enable_gqa,
        )

    def forget(self) -> None:
        self.given, self.settings = (), None


def _queries(q: Node | Tensor, values: Values, own: Tile) -> Tensor:
    """Return q, some tokens at a time if several tensors of its size precede it.

    That is the case for rotary positions, for example.
    """
    first, last = own.token
    rows = ROWS.get(q.device.type, ROWS["cpu"])
    if not isinstance(q, Pointwise) or q.known is not None or last - first <= rows:
        return values.of(q, own, ROLES)
    spans = [(start, min(last, start + rows)) for start in range(first, last, rows)]
    made: Tensor | None = None
    for start, end in spans:
        found = Values(values.uses).of(q, replace(own, token=(start, end)))
        if made is None:
            made = found.new_empty(*found.shape[:2], last - first, found.shape[3])
        made[:, :, start - first : end - first] = found
    assert made is not None
    return made


def swap_roles(roles: Roles, first: int, second: int) -> Roles:
    """Return the roles after `transpose`."""
    moved: list[Role] = list(roles)
    moved[first], moved[second] = moved[second], moved[first]
    return tuple(moved)
