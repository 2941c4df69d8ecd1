"""Rank multiples that suit the device, if the recipe says "auto".

A CPU vector holds 8 numbers of 32 bits, a GPU tile is 64 wide; a rank between two multiples
costs nearly as much as the next one. Small layers get smaller multiples: at most a sixteenth of
their narrower side.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

MULTIPLES = {"cpu": 8, "cuda": 64}
"""By device kind; others count as a processor."""
SHARE = 16


def multiple_for(multiple: int | Literal["auto"], shapes: Iterable[tuple[int, int]]) -> int:
    """Return `multiple`, or for "auto" one that suits the device and the layers of `shapes`."""
    if multiple != "auto":
        return multiple
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return auto_multiple(kind, shapes)


def auto_multiple(kind: str, shapes: Iterable[tuple[int, int]]) -> int:
    """Return the device kind's multiple, halved until it suits the narrowest of `shapes`."""
    multiple = MULTIPLES.get(kind, MULTIPLES["cpu"])
    narrow = min((min(shape) for shape in shapes), default=multiple * SHARE)
    while multiple > 1 and multiple * SHARE > narrow:
        multiple //= 2
    return multiple
