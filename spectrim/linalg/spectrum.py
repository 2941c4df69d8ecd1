"""Summaries of a spectrum s_1 >= s_2 >= ... >= 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tail_energy(spectrum: Tensor) -> Tensor:
    """Return `sum_{i>r} s_i^2` for r = 0 .. k, shape (k + 1,)."""
    energy = spectrum.double() ** 2
    tails = energy.flip(0).cumsum(0).flip(0)
    return torch.cat([tails, tails.new_zeros(1)])


def trailing_block_sums(matrix: Tensor) -> Tensor:
    """Return `sum_{i>r, j>r} H_ij` for r = 0 .. k of a symmetric (k, k) matrix, shape (k +
    1,).
    """
    rows = matrix.diagonal() + 2 * matrix.triu(1).sum(1)
    sums = rows.flip(0).cumsum(0).flip(0)
    return torch.cat([sums, sums.new_zeros(1)])


def effective_rank(spectrum: Tensor) -> float:
    """Return `exp(entropy(s^2 / sum s^2))` (D-Rank, arXiv:2509.25622)."""
    share = spectrum.double() ** 2
    share = share / share.sum()
    positive = share[share > 0]
    return float(torch.exp(-(positive * positive.log()).sum()))


def stable_rank(spectrum: Tensor) -> float:
    """Return `sum s_i^2 / s_1^2`."""
    energy = spectrum.double() ** 2
    return float(energy.sum() / energy.max())


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of (m, n), descending, shape (min(m, n),), float64.

    They are roots of the eigenvalues of the smaller Gram matrix, so that values below 1e-8 of
    the largest are rounding.
    """
    matrix = matrix.double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()


def tail_exponent(spectrum: Tensor) -> float:
    """Return Hill's estimate of alpha in `p(lambda) ~ lambda^-alpha`, lambda = s^2.

        alpha = 1 + k / sum_{i<=k} log(lambda_i / lambda_{k+1}),   k = n // 2

    Uses the larger half of the values. Heavy tails have a small alpha. NaN with fewer than two
    positive values, infinite where the larger half is flat (Martin and Mahoney,
    arXiv:1810.01075).
    """
    energy = spectrum.double()[spectrum > 0] ** 2
    count = len(energy) // 2
    if count == 0:
        return float("nan")
    logs = (energy[:count] / energy[count]).log().sum()
    return 1.0 + float(count / logs) if logs > 0 else float("inf")


def token_directions(hidden: Tensor) -> Tensor:
    """Center tokens (L, d) by the mean token and scale them to length one; zero rows stay
    zero.
    """
    centered = hidden.double() - hidden.double().mean(0)
    return torch.nn.functional.normalize(centered, dim=1)


def matrix_nuclear_norm(directions: Tensor) -> float:
    """Return `sum of the min(L, d) largest column norms / L` of (L, d) unit tokens.

    For L >= d at least their nuclear norm over L, at the price of one pass over the numbers
    (Li et al., arXiv:2410.10672).
    """
    tokens, width = directions.shape
    norms = torch.linalg.vector_norm(directions, dim=0)
    return float(norms.topk(min(tokens, width)).values.sum() / tokens)


def matrix_entropy(directions: Tensor) -> float:
    """Return `-sum_i p_i log p_i` in nats, p the normalized eigenvalues of the tokens'
    covariance.

    This is the logarithm of the effective rank of (L, d) tokens (Wei et al., arXiv:2401.17139).
    """
    spectrum = singular_values(directions)
    return math.log(effective_rank(spectrum)) if bool(spectrum.any()) else 0.0
