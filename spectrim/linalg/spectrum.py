"""Numbers that summarise a spectrum s_1 >= s_2 >= ... >= 0."""

from __future__ import annotations

import torch
from torch import Tensor


def tail_energy(spectrum: Tensor) -> Tensor:
    """`sum_{i>r} s_i^2` for r = 0 .. k, shape (k + 1,)."""
    energy = spectrum.double() ** 2
    tails = energy.flip(0).cumsum(0).flip(0)
    return torch.cat([tails, tails.new_zeros(1)])


def trailing_block_sums(matrix: Tensor) -> Tensor:
    """`sum_{i>r, j>r} H_ij` for r = 0 .. k of a symmetric (k, k) matrix, shape (k + 1,)."""
    reversed_rows = matrix.flip(0, 1)
    sums = reversed_rows.cumsum(0).cumsum(1).diagonal().flip(0)
    return torch.cat([sums, sums.new_zeros(1)])


def effective_rank(spectrum: Tensor) -> float:
    """`exp(entropy(s^2 / sum s^2))` (D-Rank, arXiv:2509.25622)."""
    share = spectrum.double() ** 2
    share = share / share.sum()
    positive = share[share > 0]
    return float(torch.exp(-(positive * positive.log()).sum()))


def stable_rank(spectrum: Tensor) -> float:
    """`sum s_i^2 / s_1^2`."""
    energy = spectrum.double() ** 2
    return float(energy.sum() / energy.max())
