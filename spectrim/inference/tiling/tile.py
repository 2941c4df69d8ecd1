"""The part of a tensor that is computed at once, and the roles of its axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Role = Literal["batch", "token", "head", "feature"] | None
Roles = tuple[Role, ...]
Span = tuple[int, int]

FEATURES: Roles = ("batch", "token", "feature")
"""Of a layer's output (B, T, O)."""
HEADS: Roles = ("batch", "token", "head", None)
"""Of the same cut into heads (B, T, H, D)."""

ROWS = {"cpu": 256, "cuda": 4096}
"""Tokens made at once: on a processor so few that a wide hidden state stays in its cache."""


@dataclass(frozen=True)
class Tile:
    """Half-open ranges. heads and features: None for all of them."""

    batch: Span
    token: Span
    head: Span | None = None
    feature: Span | None = None

    def whole_width(self) -> Tile:
        return replace(self, head=None, feature=None)


def part(tensor: Tensor, roles: Roles, tile: Tile) -> Tensor:
    """Return a view of the tile; axes are aligned at the end, those of length one stay."""
    first = tensor.dim() - len(roles)
    for axis, role in enumerate(roles):
        span = getattr(tile, role) if role is not None else None
        if span is not None and first + axis >= 0 and tensor.shape[first + axis] > 1:
            tensor = tensor.narrow(first + axis, span[0], span[1] - span[0])
    return tensor


def tiles(shape: torch.Size, roles: Roles, rows: int, split: bool) -> Iterator[Tile]:
    """Yield tiles of about `rows` tokens. split: the tokens of a row may be split up."""
    batch = shape[roles.index("batch")]
    tokens = shape[roles.index("token")]
    length = min(tokens, rows) if split else tokens
    together = max(1, rows // tokens)
    for first in range(0, batch, together):
        for start in range(0, tokens, length):
            end = min(tokens, start + length)
            yield Tile((first, min(batch, first + together)), (start, end))
