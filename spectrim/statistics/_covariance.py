"""Sums of outer products, in full or in a form of fewer numbers that is a sum as well.

    full        sum_t r_t r_t^T                                    n^2 numbers
    blocks      its k diagonal blocks of neighboring channels     n^2 / k
    low_rank    sum_t r_t (r_t^T T), T (n, s) random but fixed,
                and the diagonal sum_t r_t^2                       n (s + 1)
    through     sum_t z_t z_t^T, z_t (k,) the image of r_t under
                the layer's weight, and the diagonal               k^2 + n

So every form merges by addition and does not depend on the batches. `finish` makes of them a
matrix, or a `Covariance` by its parts.

`through` loses nothing that a decomposition of that weight asks for: of a wide layer z = W x is
its output, so the sums are W C_x W^T, and of a tall one z = W^T g is the gradient for its input
and they are W^T C_g W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from spectrim.linalg.covariance import (
    BlockDiagonal,
    Covariance,
    LowRankDiagonal,
    ProjectedCovariance,
)
from spectrim.statistics._tokens import at_least_float32, sum_of_outer_products

Kind = Literal["full", "block_diagonal", "low_rank", "projected"]
"""Forms of a covariance: whole, as blocks on the diagonal, as low rank plus diagonal, or as
what a decomposition of the layer's weight sees of it."""
_NUMBER = 8
"""Bytes."""
_SEED = 20


@dataclass(frozen=True)
class CovarianceFormat:
    """The form of a stored covariance.

    number: how many blocks, the width s of the sketch, or the weight's smaller side k.
    """

    kind: Kind = "full"
    number: int = 1

    def bytes(self, width: int) -> int:
        """Return the bytes of a covariance of this width."""
        if self.kind == "low_rank":
            return _NUMBER * width * (self.number + 1)
        if self.kind == "projected":
            return _NUMBER * (self.number**2 + width)
        return _NUMBER * sum(size**2 for size in self.sizes(width))

    def sizes(self, width: int) -> list[int]:
        """Return the sizes of the diagonal blocks, which differ by at most one."""
        count = min(self.number, width) if self.kind == "block_diagonal" else 1
        small, more = divmod(width, count)
        return [small + 1] * more + [small] * (count - more)


FULL = CovarianceFormat()
"""Every number of a covariance; the others are kept where a budget of bytes asks for them."""


def largest_format(width: int, limit: float, kind: Kind) -> CovarianceFormat | None:
    """Return the best of a kind within `limit` bytes, full if that fits; None for none."""
    if FULL.bytes(width) <= limit:
        return FULL
    if kind == "low_rank":
        columns = int(limit) // (_NUMBER * width) - 1
        return CovarianceFormat(kind, columns) if columns > 0 else None
    least = max(2, int(FULL.bytes(width) // max(limit, 1)))
    counts = range(least, min(width, 2 * least + 1) + 1)
    return next(
        (
            f
            for c in counts
            if (f := CovarianceFormat("block_diagonal", c)).bytes(width) <= limit
        ),
        None,
    )


def empty(width: int, form: CovarianceFormat = FULL) -> dict[str, Tensor]:
    if form.kind == "full":
        return {"sum": torch.zeros(width, width, dtype=torch.float64)}
    if form.kind == "low_rank":
        return {
            "sketch": torch.zeros(width, form.number, dtype=torch.float64),
            "diagonal": torch.zeros(width, dtype=torch.float64),
        }
    if form.kind == "projected":
        return {
            "through": torch.zeros(form.number, form.number, dtype=torch.float64),
            "diagonal": torch.zeros(width, dtype=torch.float64),
        }
    return {
        f"block{number:05d}": torch.zeros(size, size, dtype=torch.float64)
        for number, size in enumerate(form.sizes(width))
    }


def update(state: dict[str, Tensor], rows: Tensor, projections: Callable[[], Tensor]) -> None:
    """Add rows (t, n), and `projections` (t, k) if the form needs them, to a state."""
    if "sum" in state:
        state["sum"] += sum_of_outer_products(rows)
    elif "through" in state:
        state["through"] += sum_of_outer_products(projections())
        state["diagonal"] += at_least_float32(rows).square().sum(0)
    elif "sketch" in state:
        rows = rows.double()
        state["sketch"] += rows.T @ (rows @ _test_matrix(*state["sketch"].shape))
        state["diagonal"] += rows.square().sum(0)
    else:
        blocks = [state[name] for name in sorted(state)]
        parts = rows.split([len(block) for block in blocks], 1)
        for block, part in zip(blocks, parts, strict=True):
            block += sum_of_outer_products(part)


def finish(state: dict[str, Tensor], count: float) -> Tensor | Covariance:
    """Return C (n, n), per token."""
    tokens = max(count, 1)
    if "sum" in state:
        return state["sum"] / tokens
    if "sketch" in state:
        sketch = state["sketch"] / tokens
        test = _test_matrix(*sketch.shape)
        return LowRankDiagonal.from_sketch(sketch, test, state["diagonal"] / tokens)
    if "through" in state:
        return ProjectedCovariance(state["through"] / tokens, state["diagonal"] / tokens)
    return BlockDiagonal([state[name] / tokens for name in sorted(state)])


def convert_format(state: dict[str, Tensor], form: CovarianceFormat) -> dict[str, Tensor]:
    """Return a full state as the same sums in another form."""
    matrix = state["sum"]
    if form.kind == "low_rank":
        sketch = matrix @ _test_matrix(len(matrix), form.number)
        return {"sketch": sketch, "diagonal": matrix.diagonal().clone()}
    result, start = empty(len(matrix), form), 0
    for block in result.values():
        end = start + len(block)
        block += matrix[start:end, start:end]
        start = end
    return result


@lru_cache(maxsize=8)
def _test_matrix(width: int, columns: int) -> Tensor:
    """Return T: normal numbers that depend on the shape alone, so that runs can be merged."""
    generator = torch.Generator().manual_seed(_SEED + width)
    return torch.randn(width, columns, generator=generator, dtype=torch.float64)
