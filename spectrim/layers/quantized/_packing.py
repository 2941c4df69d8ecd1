"""Small integers packed without gaps: eight codes of b bits in b bytes, lowest code first.

    word = sum_i code_i * 2^(b i), i = 0 .. 7,   b bytes, lowest first

`ceil(n / 8) * b` bytes for n codes; 3-bit codes cross byte borders and waste nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TOGETHER = 8


def packed_bytes(count: int, bits: int) -> int:
    return -(-count // _TOGETHER) * bits


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (...) in 0 .. 2^bits - 1, bits 1 .. 8, into uint8 (packed_bytes,)."""
    flat = codes.flatten().long()
    padded = flat.new_zeros(-(-flat.numel() // _TOGETHER), _TOGETHER)
    padded.view(-1)[: flat.numel()] = flat
    words = (padded << _shifts(padded, bits, _TOGETHER)).sum(1)
    return ((words[:, None] >> _shifts(words, 8, bits)) & 255).to(torch.uint8).flatten()


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes of `pack_codes`'s result, uint8 (count,)."""
    bytes_ = packed.view(-1, bits).long()
    words = (bytes_ << _shifts(bytes_, 8, bits)).sum(1)
    codes = (words[:, None] >> _shifts(words, bits, _TOGETHER)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten()[:count]


def _shifts(like: Tensor, step: int, count: int) -> Tensor:
    return step * torch.arange(count, device=like.device)


def centered_matrix(
    codes: Tensor, scales: Tensor, columns: int, grid: tuple[int, int]
) -> Tensor:
    """Return `s (q - (2^b - 1) / 2)` (rows, columns) of packed codes and scales, in float32.

    Args:
        scales: (rows, groups), float16 as int16.
        grid: bits and columns per scale.
    """
    bits, group = grid
    steps = unpack_codes(codes, bits, len(scales) * columns).view(len(scales), columns)
    spread = scales.view(torch.float16).float().repeat_interleave(group, 1)[:, :columns]
    return spread * (steps - (2**bits - 1) / 2)
