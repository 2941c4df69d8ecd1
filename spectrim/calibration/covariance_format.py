"""The storage of covariances: in full, or in fewer numbers.

Of a layer's wider side by what its weight makes of it, which loses nothing that decomposing the
layer asks for; or to fit a number of bytes:

    each takes min(8 n^2, t) bytes at most, n its width, and t the largest for which all fit

So small ones stay whole and the widest give way first, all of those to one limit. Counted as if
no two layers read the same input: the choice needs nothing but shapes, and is the same for a
model in memory and for one that is streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from spectrim.errors import InputError
from spectrim.statistics import FULL, STATISTICS, CovarianceFormat, Kind, largest_format

Shapes = Mapping[str, tuple[int, int]]
Wide = Literal["full", "projected"]
"""Formats of the covariance of a layer's wider side."""
_STEPS = 60
"""Halvings of the interval that the limit is in."""


@dataclass(frozen=True)
class MemoryBudget:
    """bytes: for all sums together; kind: of those that do not fit in full."""

    bytes: int
    kind: Kind = "low_rank"

    def formats(
        self, shapes: Shapes, names: Sequence[str]
    ) -> dict[tuple[str, str], CovarianceFormat]:
        """Return the format by statistic and layer of covariances. Raises InputError."""
        widths = _widths(shapes, names)
        other = sum(
            state_bytes(name, shape)
            for name in names
            for layer, shape in shapes.items()
            if (name, layer) not in widths
        )
        low, high = 0.0, float(max(map(FULL.bytes, widths.values()), default=0))
        if (found := self._within(widths, high, other)) is not None:
            return found
        for _ in range(_STEPS):
            middle = (low + high) / 2
            forms = self._within(widths, middle, other)
            if forms is None and self._too_small(widths, middle):
                low = middle
            elif forms is None:
                high = middle
            else:
                low, found = middle, forms
        if found is None:
            raise InputError(
                f"covariance_bytes {self.bytes} is too little for {', '.join(names)} of "
                f"{len(shapes)} layers; allow more, or compress fewer layers (--include)"
            )
        return found

    def _within(
        self, widths: Mapping[tuple[str, str], int], limit: float, other: int
    ) -> dict[tuple[str, str], CovarianceFormat] | None:
        """Give each at most `limit` bytes; None if that is not possible, or too much."""
        forms = {}
        for key, width in widths.items():
            if (form := largest_format(width, limit, self.kind)) is None:
                return None
            forms[key] = form
        total = other + sum(forms[key].bytes(width) for key, width in widths.items())
        return forms if total <= self.bytes else None

    def _too_small(self, widths: Mapping[tuple[str, str], int], limit: float) -> bool:
        return any(largest_format(w, limit, self.kind) is None for w in widths.values())


def projected_formats(
    shapes: Shapes, names: Sequence[str]
) -> dict[tuple[str, str], CovarianceFormat]:
    """Return the formats, by statistic and layer, of covariances of wider sides."""
    return {
        (name, layer): CovarianceFormat("projected", min(shapes[layer]))
        for (name, layer), width in _widths(shapes, names).items()
        if width > min(shapes[layer])
    }


def state_bytes(name: str, shape: tuple[int, int], form: CovarianceFormat = FULL) -> int:
    module = STATISTICS.get(name)
    if form != FULL:
        return form.bytes(module.width(shape))
    with torch.device("meta"):
        state = module.empty(shape)
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _widths(shapes: Shapes, names: Sequence[str]) -> dict[tuple[str, str], int]:
    return {
        (name, layer): module.width(shape)
        for name in names
        if hasattr(module := STATISTICS.get(name), "width")
        for layer, shape in shapes.items()
    }
