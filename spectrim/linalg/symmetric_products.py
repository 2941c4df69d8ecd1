"""Matrix products that compute only half of a symmetric or triangular result.

    A^T B (k, k) of A and B (n, k), where it equals its transpose; A^T A is one
    L M and L^T M of a lower triangle L (n, n)

n k^2 operations instead of 2 n k^2, by halving: two diagonal blocks of half the size and one
plain product between them. n^2 k instead of 2 n^2 k, by panels of L without what is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PANELS = 8
_LEAF = 128
"""Width below which one plain product is faster than two halves and a block."""


def gram(rows: Tensor) -> Tensor:
    """Return `rows^T rows`, (k, k) of (n, k)."""
    return symmetric_product(rows, rows)


def symmetric_product(first: Tensor, second: Tensor) -> Tensor:
    """Return `first^T second`, (k, k), which has to be symmetric."""
    size = first.shape[1]
    result = first.new_empty(size, size)
    _fill(result, first, second)
    return result


def triangular_product(lower: Tensor, matrix: Tensor, transposed: bool = False) -> Tensor:
    """Return `L M` or `L^T M` (n, k) of a lower triangle (n, n), zero above the diagonal."""
    size, step = len(lower), max(_LEAF, -(-len(lower) // _PANELS))
    result = matrix.new_empty(size, matrix.shape[1])
    for first in range(0, size, step):
        last = min(first + step, size)
        if transposed:
            torch.mm(lower[first:, first:last].T, matrix[first:], out=result[first:last])
        else:
            torch.mm(lower[first:last, :last], matrix[:last], out=result[first:last])
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
