"""Feed-forward kernel: each program holds a tile of tokens and z_d, and loops over the width.

    z_d[tokens, ranks] += h[tokens, tile] R_d[ranks, tile]^T,   h computed on the chip

A tile of z_d is `MOST_DOWN` ranks wide; if r_d is larger, h is recomputed for each tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectrim.inference.kernels.factor_spec import Second
from spectrim.inference.kernels.tiles import expanded, pointers, product, tile, wide

MOST_TOKENS, MOST_HIDDEN, MOST_RANKS, MOST_DOWN = 32, 64, 64, 512


@triton.jit
def _activated(x, ACT: tl.constexpr):
    if ACT == "silu":
        return x * tl.sigmoid(x)
    if ACT == "gelu":
        return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    if ACT == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * tl.sigmoid(2.0 * inner)  # 0.5 (1 + tanh a) = sigmoid(2 a)
    return tl.maximum(x, 0.0)


@triton.jit
def _kernel(zu, zg, au, ag, pu, pg, bu, bg, down, down_bias, y, count, hidden, ru, rg, rd,
            TT: tl.constexpr, TH: tl.constexpr, TR: tl.constexpr, TD: tl.constexpr,
            ACT: tl.constexpr, GATED: tl.constexpr, P_U: tl.constexpr, P_G: tl.constexpr,
            B_U: tl.constexpr, B_G: tl.constexpr, B_D: tl.constexpr,
            WIDE: tl.constexpr):  # fmt: skip
    tokens = tl.program_id(0) * TT + tl.arange(0, TT)
    ranks = tl.program_id(1) * TD + tl.arange(0, TD)
    total = tl.zeros((TT, TD), dtype=tl.float32)
    for start in range(0, hidden, TH):
        rows = start + tl.arange(0, TH)
        h = expanded(zu, au, pu, bu, tokens, rows, count, hidden, ru, TR, P_U, B_U, WIDE)
        if GATED:
            gate = expanded(zg, ag, pg, bg, tokens, rows, count, hidden, rg, TR, P_G, B_G, WIDE)
            h = _activated(gate, ACT) * h
        else:
            h = _activated(h, ACT)
        inside = (ranks < rd)[:, None] & (rows < hidden)[None, :]
        right = tl.load(down + ranks[:, None] * hidden + rows[None, :], mask=inside, other=0.0)
        total += product(h.to(right.dtype), tl.trans(right), WIDE)
    if B_D:
        total += tl.load(down_bias + ranks, mask=ranks < rd, other=0.0).to(tl.float32)[None, :]
    tl.store(y + tokens[:, None] * rd + ranks[None, :], total.to(y.dtype.element_ty),
             mask=(tokens < count)[:, None] & (ranks < rd)[None, :])  # fmt: skip


def flash_ffn(
    up: tuple[Tensor, Second],
    gate: tuple[Tensor, Second] | None,
    down: tuple[Tensor, Tensor | None],
    activation: str,
) -> Tensor:
    right, right_bias = down
    zu, zg = (part[0].reshape(-1, part[0].shape[-1]).contiguous() for part in (up, gate or up))
    second = (gate or up)[1]
    (au, pu, bu), (ag, pg, bg) = pointers(up[1], zu), pointers(second, zg)
    y = torch.empty(len(zu), len(right), dtype=zu.dtype, device=zu.device)
    tokens, ranks = tile(len(zu), MOST_TOKENS), tile(len(right), MOST_DOWN)
    _kernel[(triton.cdiv(len(zu), tokens), triton.cdiv(len(right), ranks))](
        zu, zg, au, ag, pu, pg, bu, bg, right.contiguous(),
        zu if right_bias is None else right_bias, y, len(zu), right.shape[1],
        zu.shape[1], zg.shape[1], len(right),
        TT=tokens, TH=tile(right.shape[1], MOST_HIDDEN),
        TR=tile(max(zu.shape[1], zg.shape[1]), MOST_RANKS), TD=ranks, ACT=activation,
        GATED=gate is not None, P_U=up[1].position is not None,
        P_G=second.position is not None, B_U=up[1].bias is not None,
        B_G=second.bias is not None, B_D=right_bias is not None, WIDE=wide(zu),
    )  # fmt: skip
    return y.view(*up[0].shape[:-1], len(right))
