"""Attention with q, k and v written out and all scores at once."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.inference.kernels.factor_spec import Second
from spectrim.inference.kernels.flash_attention.heads import Heads


def flash_attention(
    z: tuple[Tensor, Tensor, Tensor],
    seconds: tuple[Second, Second, Second],
    heads: Heads,
    mask: Tensor | None,
    rotary: tuple[Tensor, Tensor] | None,
) -> Tensor:
    q, k, v = (
        second.apply(part).unflatten(-1, (-1, heads.width)).transpose(1, 2)  # (B, H, T, D)
        for part, second in zip(z, seconds, strict=True)
    )
    if rotary is not None:
        q, k = _rotated(q, *rotary), _rotated(k, *rotary)
    shared = heads.queries // heads.keys
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = heads.scaling * (q.float() @ k.float().transpose(-1, -2))
    seen = _seen(q.shape[2], k.shape[2], heads.causal, mask, q.device)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + D/2}) by its position's angle; x (B, H, T, D)."""
    cosines, sines = (t[:, None, -x.shape[2] :] for t in (cosines, sines))
    first, second = x.chunk(2, -1)
    return (x * cosines + torch.cat([-second, first], -1) * sines).to(x.dtype)


def _seen(
    queries: int, keys: int, causal: bool, mask: Tensor | None, device: torch.device
) -> Tensor:
    """Return the visible keys (B or 1, 1, T, S) bool."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril(keys - queries)
    return seen[None, None] if mask is None else seen & mask.bool()[:, None, None, :]
