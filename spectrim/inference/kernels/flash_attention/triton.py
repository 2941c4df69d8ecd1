"""Attention kernel: each program holds one tile of queries of one head and loops over the keys.

    q = A_q z_q,   k = A_k z_k,   v = A_v z_v        tile by tile, on the chip
    m, l, acc                                        running maximum, sum and output (softmax)

A head's width is held as two halves, between which rotary positions rotate pairs of numbers.
Keys and values of a tile are recomputed for every tile of queries: work for memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectrim.inference.kernels.factor_spec import Second
from spectrim.inference.kernels.flash_attention.heads import Heads
from spectrim.inference.kernels.tiles import expanded, pointers, product, tile, wide

MOST_QUERIES, MOST_KEYS, MOST_RANKS = 64, 64, 64
NOTHING = tl.constexpr(-1e30)


@triton.jit
def _turned(first, second, cosines, sines, tokens, count, lanes, HALF: tl.constexpr):
    """Rotate both halves; cosines and sines (count, 2 HALF) are pointers."""
    inside = (tokens < count)[:, None] & (lanes < HALF)[None, :]
    at = tokens[:, None] * (2 * HALF) + lanes[None, :]
    cos1 = tl.load(cosines + at, mask=inside, other=0.0).to(tl.float32)
    sin1 = tl.load(sines + at, mask=inside, other=0.0).to(tl.float32)
    cos2 = tl.load(cosines + at + HALF, mask=inside, other=0.0).to(tl.float32)
    sin2 = tl.load(sines + at + HALF, mask=inside, other=0.0).to(tl.float32)
    return first * cos1 - second * sin1, second * cos2 + first * sin2


@triton.jit
def _rows(start, lanes, width, out, HALF: tl.constexpr):
    """Return the rows of a head's halves; what is beyond its width is row `out`, of none."""
    first = tl.where(lanes < HALF, start + lanes, out)
    second = tl.where(lanes < width - HALF, start + HALF + lanes, out)
    return first, second


@triton.jit
def _visible(tokens, places, at, mask, queries, keys, CAUSAL: tl.constexpr,
             MASKED: tl.constexpr):  # fmt: skip
    """Return which keys each query attends to; mask (keys,) is a pointer."""
    seen = (at < keys)[None, :] & (tokens < queries)[:, None]
    if CAUSAL:
        seen = seen & (at[None, :] <= places[:, None])
    if MASKED:
        real = tl.load(mask + at, mask=at < keys, other=0)
        seen = seen & (real != 0)[None, :]
    return seen


@triton.jit
def _kernel(zq, zk, zv, aq, ak, av, pq, pk, pv, bq, bk, bv, cosines, sines, mask, y, queries,
            keys, heads, shared, width, rq, rk, rv, turn_stride, scale,
            HALF: tl.constexpr, LANES: tl.constexpr, TQ: tl.constexpr, TK: tl.constexpr,
            TR: tl.constexpr, CAUSAL: tl.constexpr, ROTARY: tl.constexpr, MASKED: tl.constexpr,
            P_Q: tl.constexpr, P_K: tl.constexpr, P_V: tl.constexpr, B_Q: tl.constexpr,
            B_K: tl.constexpr, B_V: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    tokens = tl.program_id(0) * TQ + tl.arange(0, TQ)
    lanes = tl.arange(0, LANES)
    out, kv_out = heads * width, heads // shared * width
    rows1, rows2 = _rows(head * width, lanes, width, out, HALF)
    kv1, kv2 = _rows(head // shared * width, lanes, width, kv_out, HALF)
    zq += batch * queries * rq
    zk += batch * keys * rk
    zv += batch * keys * rv
    cosines += batch * turn_stride
    sines += batch * turn_stride
    q1 = expanded(zq, aq, pq, bq, tokens, rows1, queries, out, rq, TR, P_Q, B_Q, WIDE)
    q2 = expanded(zq, aq, pq, bq, tokens, rows2, queries, out, rq, TR, P_Q, B_Q, WIDE)
    places = tokens + keys - queries
    if ROTARY:
        q1, q2 = _turned(q1, q2, cosines, sines, places, keys, lanes, HALF)
    q1, q2 = q1.to(aq.dtype.element_ty), q2.to(aq.dtype.element_ty)
    highest = tl.full((TQ,), NOTHING, dtype=tl.float32)
    total = tl.zeros((TQ,), dtype=tl.float32)
    y1 = tl.zeros((TQ, LANES), dtype=tl.float32)
    y2 = tl.zeros((TQ, LANES), dtype=tl.float32)
    last = keys
    if CAUSAL:
        last = tl.minimum(keys, (tl.program_id(0) + 1) * TQ + keys - queries)
    for first in range(0, last, TK):
        at = first + tl.arange(0, TK)
        k1 = expanded(zk, ak, pk, bk, at, kv1, keys, kv_out, rk, TR, P_K, B_K, WIDE)
        k2 = expanded(zk, ak, pk, bk, at, kv2, keys, kv_out, rk, TR, P_K, B_K, WIDE)
        if ROTARY:
            k1, k2 = _turned(k1, k2, cosines, sines, at, keys, lanes, HALF)
        k1, k2 = k1.to(ak.dtype.element_ty), k2.to(ak.dtype.element_ty)
        scores = product(q1, tl.trans(k1), WIDE) + product(q2, tl.trans(k2), WIDE)
        here = mask + batch * keys
        seen = _visible(tokens, places, at, here, queries, keys, CAUSAL, MASKED)
        scores = tl.where(seen, scores * scale, NOTHING)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.where(seen, tl.exp(scores - higher[:, None]), 0.0)
        fading = tl.exp(highest - higher)
        total = total * fading + tl.sum(weights, 1)
        highest = higher
        v1 = expanded(zv, av, pv, bv, at, kv1, keys, kv_out, rv, TR, P_V, B_V, WIDE)
        v2 = expanded(zv, av, pv, bv, at, kv2, keys, kv_out, rv, TR, P_V, B_V, WIDE)
        weights = weights.to(av.dtype.element_ty)
        y1 = y1 * fading[:, None] + product(weights, v1.to(av.dtype.element_ty), WIDE)
        y2 = y2 * fading[:, None] + product(weights, v2.to(av.dtype.element_ty), WIDE)
    total = tl.where(total > 0.0, total, 1.0)[:, None]
    y += batch * queries * out
    inside = (tokens < queries)[:, None]
    at1 = tokens[:, None] * out + rows1[None, :]
    at2 = tokens[:, None] * out + rows2[None, :]
    tl.store(y + at1, (y1 / total).to(y.dtype.element_ty), mask=inside & (rows1 < out)[None, :])
    tl.store(y + at2, (y2 / total).to(y.dtype.element_ty), mask=inside & (rows2 < out)[None, :])


def flash_attention(
    z: tuple[Tensor, Tensor, Tensor],
    seconds: tuple[Second, Second, Second],
    heads: Heads,
    mask: Tensor | None,
    rotary: tuple[Tensor, Tensor] | None,
) -> Tensor:
    q, k, v = (part.contiguous() for part in z)
    (batch, queries, rq), (_, keys, rk), rv = q.shape, k.shape, v.shape[-1]
    weights, positions, biases = zip(
        *(pointers(second, part) for second, part in zip(seconds, (q, k, v), strict=True)),
        strict=True,
    )
    cosines, sines = (q, q) if rotary is None else (t.contiguous() for t in rotary)
    own_turns = rotary is not None and cosines.shape[0] > 1
    half = (heads.width + 1) // 2
    y = torch.empty(batch, queries, heads.queries * heads.width, dtype=q.dtype, device=q.device)
    tokens = tile(queries, MOST_QUERIES)
    _kernel[(triton.cdiv(queries, tokens), batch * heads.queries)](
        q, k, v, *weights, *positions, *biases, cosines, sines,
        q if mask is None else mask.to(torch.int8).contiguous(), y, queries, keys,
        heads.queries, heads.queries // heads.keys, heads.width, rq, rk, rv,
        keys * heads.width if own_turns else 0, heads.scaling,
        HALF=half, LANES=tile(half, half * 2), TQ=tokens, TK=tile(keys, MOST_KEYS),
        TR=tile(max(rq, rk, rv), MOST_RANKS), CAUSAL=heads.causal, ROTARY=rotary is not None,
        MASKED=mask is not None, **_kinds(seconds), WIDE=wide(q),
    )  # fmt: skip
    return y


def _kinds(seconds: tuple[Second, Second, Second]) -> dict[str, bool]:
    """Return which factors are pivoted (P_) and which have a bias (B_)."""
    pivoted = {f"P_{n}": s.position is not None for n, s in zip("QKV", seconds, strict=True)}
    return pivoted | {f"B_{n}": s.bias is not None for n, s in zip("QKV", seconds, strict=True)}
