"""Functions shared by the kernels: tiles of a second factor, and products of two tiles."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectrim.inference.kernels.dispatch import interprets
from spectrim.inference.kernels.factor_spec import Second

SMALLEST_TILE = 16
"""The smallest tile of a tensor core."""


@triton.jit
def left_tile(weight, position, rows, ranks, out, rank, PIVOTED: tl.constexpr):
    """Load A[rows, ranks] of the full (out, rank) factor; zero outside it.

    The rows of a pivoted layer are gathered: a row of the identity for a pivot, else the
    matching row of coefficients.
    """
    inside = (rows < out)[:, None] & (ranks < rank)[None, :]
    if PIVOTED:
        place = tl.load(position + rows, mask=rows < out, other=0)
        others = inside & (place >= rank)[:, None]
        at = (place - rank)[:, None] * rank + ranks[None, :]
        stored = tl.load(weight + at, mask=others, other=0.0)
        unit = inside & (place[:, None] == ranks[None, :])
        return tl.where(unit, 1.0, stored.to(tl.float32)).to(stored.dtype)
    return tl.load(weight + rows[:, None] * rank + ranks[None, :], mask=inside, other=0.0)


@triton.jit
def product(a, b, WIDE: tl.constexpr):
    """Return a b in float32. WIDE: convert first; the interpreter has no half-precision dot."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def expanded(z, weight, position, bias, tokens, rows, count, out, rank, BLOCK_R: tl.constexpr,
             PIVOTED: tl.constexpr, BIASED: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Return (tokens, rows) of `A z + b` in float32; z (count, rank) is a pointer.

    tokens from `count` and rows from `out` on are padding.
    """
    total = tl.zeros((tokens.shape[0], rows.shape[0]), dtype=tl.float32)
    for start in range(0, rank, BLOCK_R):
        ranks = start + tl.arange(0, BLOCK_R)
        inside = (tokens < count)[:, None] & (ranks < rank)[None, :]
        part = tl.load(z + tokens[:, None] * rank + ranks[None, :], mask=inside, other=0.0)
        left = left_tile(weight, position, rows, ranks, out, rank, PIVOTED)
        total += product(part, tl.trans(left), WIDE)
    if BIASED:
        total += tl.load(bias + rows, mask=rows < out, other=0.0).to(tl.float32)[None, :]
    return total


def tile(size: int, most: int) -> int:
    """Return a power of two that holds `size`, at least the smallest tile, at most `most`."""
    return max(SMALLEST_TILE, min(triton.next_power_of_2(size), most))


def wide(tensor: Tensor) -> bool:
    return interprets() and tensor.dtype != torch.float32


def pointers(second: Second, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, position and bias; z is a placeholder for absent ones, and is not read."""
    position = z if second.position is None else second.position
    bias = z if second.bias is None else second.bias
    return second.weight.contiguous(), position, bias
