"""Kernel that reads every weight once: each program takes a slice of the rank.

    z_s = R_s x + c_s,   y += A[:, s] z_s

The slices' contributions are added to y in float32 in place. A pivoted layer's outputs go
straight to their places: z_s itself to the pivots', A z_s to the others'.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectrim.inference.kernels.factor_spec import Second
from spectrim.inference.kernels.tiles import SMALLEST_TILE, pointers, product, tile, wide

BLOCK_R, BLOCK_IN, BLOCK_OUT = 16, 256, 128


@triton.jit
def _kernel(x, right, right_bias, weight, position, y, tokens_count, width, rank, rows_count,
            out, M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_IN: tl.constexpr,
            BLOCK_OUT: tl.constexpr, PIVOTED: tl.constexpr, BIASED: tl.constexpr,
            WIDE: tl.constexpr):  # fmt: skip
    """Compute one slice; position: the place of [z, A z] in y, pivots first (out,)."""
    tokens = tl.arange(0, M)
    ranks = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    z = tl.zeros((M, BLOCK_R), dtype=tl.float32)
    for start in range(0, width, BLOCK_IN):
        columns = start + tl.arange(0, BLOCK_IN)
        known = (columns < width)[None, :]
        part = tl.load(x + tokens[:, None] * width + columns[None, :],
                       mask=(tokens < tokens_count)[:, None] & known, other=0.0)  # fmt: skip
        rows = tl.load(right + ranks[:, None] * width + columns[None, :],
                       mask=(ranks < rank)[:, None] & known, other=0.0)  # fmt: skip
        z += product(part, tl.trans(rows), WIDE)
    if BIASED:
        z += tl.load(right_bias + ranks, mask=ranks < rank, other=0.0).to(tl.float32)[None, :]
    given = (tokens < tokens_count)[:, None]
    if PIVOTED:
        place = tl.load(position + ranks, mask=ranks < rank, other=0)
        tl.atomic_add(y + tokens[:, None] * out + place[None, :], z,
                      mask=given & (ranks < rank)[None, :])  # fmt: skip
    z = z.to(weight.dtype.element_ty)
    for start in range(0, rows_count, BLOCK_OUT):
        rows = start + tl.arange(0, BLOCK_OUT)
        inside = (rows < rows_count)[:, None] & (ranks < rank)[None, :]
        left = tl.load(weight + rows[:, None] * rank + ranks[None, :], mask=inside, other=0.0)
        part = product(z, tl.trans(left), WIDE)
        place = rows
        if PIVOTED:
            place = tl.load(position + rank + rows, mask=rows < rows_count, other=0)
        tl.atomic_add(y + tokens[:, None] * out + place[None, :], part,
                      mask=given & (rows < rows_count)[None, :])  # fmt: skip


def lowrank_matmul(
    x: Tensor, right: Tensor, right_bias: Tensor | None, second: Second
) -> Tensor:
    """Launch the kernel. Sums are float32; on a GPU their order may vary between calls."""
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    out, rank = second.out_features, second.rank
    y = torch.zeros(len(tokens), out, dtype=torch.float32, device=x.device)
    if second.bias is not None:
        y += second.bias
    weight, _, _ = pointers(second, x)
    place = x
    if second.position is not None:
        place = second.position.argsort() if second.place is None else second.place
    _kernel[(triton.cdiv(rank, BLOCK_R),)](
        tokens, right.contiguous(), x if right_bias is None else right_bias, weight, place, y,
        len(tokens), x.shape[-1], rank, len(weight), out,
        M=tile(len(tokens), SMALLEST_TILE), BLOCK_R=BLOCK_R,
        BLOCK_IN=tile(x.shape[-1], BLOCK_IN), BLOCK_OUT=tile(len(weight), BLOCK_OUT),
        PIVOTED=second.position is not None, BIASED=right_bias is not None, WIDE=wide(x),
    )  # fmt: skip
    return y.to(x.dtype).view(*x.shape[:-1], out)
