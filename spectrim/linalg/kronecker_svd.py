"""A matrix as a sum of Kronecker products, best first (Van Loan's rearrangement).

    W = sum_k d_k E_k (x) F_k,   W (m1 m2, n1 n2),  E_k (m1, n1),  F_k (m2, n2)

Row (i, j) of the rearranged matrix R(W) (m1 n1, m2 n2) is the block (i, j) of W, so that
R(E (x) F) = vec(E) vec(F)^T and the SVD of R(W) gives the terms; the error of the first r is
exactly `sum_{k>r} d_k^2`. A plain reshape of W is no rearrangement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Blocks = tuple[int, int, int, int]
"""m1, m2, n1, n2."""


def square_blocks(shape: tuple[int, int]) -> Blocks:
    """Return the division of (m, n) whose blocks have sides nearest to the square roots."""
    (m1, m2), (n1, n2) = map(_nearest_divisors, shape)
    return m1, m2, n1, n2


def rearrange(weight: Tensor, blocks: Blocks) -> Tensor:
    """Return R(W) (m1 n1, m2 n2) of W (m1 m2, n1 n2)."""
    m1, m2, n1, n2 = blocks
    return weight.reshape(m1, m2, n1, n2).permute(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)


def kronecker_svd(weight: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Return E (k, m1, n1), d (k,) descending and F (k, m2, n2); E and F have norm one."""
    m1, m2, n1, n2 = blocks
    left, spectrum, right = torch.linalg.svd(rearrange(weight, blocks), full_matrices=False)
    return left.T.reshape(-1, m1, n1), spectrum, right.reshape(-1, m2, n2)


def kronecker_sum(first: Tensor, second: Tensor) -> Tensor:
    """Return `sum_k E_k (x) F_k` (m1 m2, n1 n2) of E (k, m1, n1) and F (k, m2, n2)."""
    (_, m1, n1), (_, m2, n2) = first.shape, second.shape
    arranged = first.flatten(1).T @ second.flatten(1)
    return arranged.reshape(m1, n1, m2, n2).permute(0, 2, 1, 3).reshape(m1 * m2, n1 * n2)


def _nearest_divisors(size: int) -> tuple[int, int]:
    small = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0)
    return size // small, small
