"""Products that are symmetric: the block above the diagonal is computed only once.

    A^T B (k, k) of A and B (n, k), where it equals its transpose; A^T A is one

n k^2 operations instead of 2 n k^2, by halving: two diagonal blocks of half the size and one
plain product between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAF = 128
"""Width below which one plain product is faster than two halves and a block."""


def gram(rows: Tensor) -> Tensor:
    """`rows^T rows`, (k, k) of (n, k)."""
    return symmetric_product(rows, rows)


def symmetric_product(first: Tensor, second: Tensor) -> Tensor:
    """`first^T second`, (k, k), which the caller knows to be symmetric."""
    size = first.shape[1]
    result = first.new_empty(size, size)
    _fill(result, first, second)
    return result


def _fill(result: Tensor, first: Tensor, second: Tensor) -> None:
    size = first.shape[1]
    if size <= _LEAF:
        torch.mm(first.T, second, out=result)
        return
    half = size // 2
    _fill(result[:half, :half], first[:, :half], second[:, :half])
    _fill(result[half:, half:], first[:, half:], second[:, half:])
    across = first[:, :half].T @ second[:, half:]
    result[:half, half:] = across
    result[half:, :half] = across.T
