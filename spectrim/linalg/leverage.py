"""Sensitivity of `||A x||_p` to each row: leverage scores, Lewis weights, and sampling.

    leverage      l_i = a_i^T (A^T A)^+ a_i = max_x (a_i^T x)^2 / ||A x||^2,   sum = rank
    block score   tr((C + ridge)^-1 C_s),   C = sum_s C_s,                     sum = rank
    Lewis weight  w_i = (a_i^T (A^T W^(1 - 2/p) A)^-1 a_i)^(p/2),              sum = rank

A row is kept independently with probability `q_i = min(1, c s_i)`, c such that `sum q_i` is the
budget, and counts 1 / q_i: then every sum over rows keeps its expectation.

D. Woodruff, T. Yasuda, 2023, arXiv:2306.00732; M. Cohen, R. Peng, 2015, arXiv:1412.0588.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.errors import InputError

ROUNDING = 1e-12
"""Singular values and eigenvalues below this share of the largest are rounding."""
LEWIS_STEPS = 60


def leverage_scores(rows: Tensor, ridge: float = 0.0) -> Tensor:
    """Return `a_i^T (A^T A + ridge I)^+ a_i` of rows (n, d), shape (n,). Cost O(n d^2)."""
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    energy = values.square()
    share = torch.where(values > ROUNDING * values.max(), energy / (energy + ridge), 0.0)
    return left.square() @ share


def block_scores(covariances: Tensor, ridge: float = 0.0) -> Tensor:
    """Return `tr((C + ridge I)^+ C_s)` of sums of outer products (s, d, d), shape (s,)."""
    total = covariances.sum(0)
    values, vectors = torch.linalg.eigh(total)
    inverse = torch.where(values > ROUNDING * values.max(), 1 / (values + ridge), 0.0)
    return torch.einsum("sij,ij->s", covariances, (vectors * inverse) @ vectors.mT)


def lewis_weights(rows: Tensor, p: float, steps: int = LEWIS_STEPS) -> Tensor:
    """Return the Lewis weights of rows (n, d) for 0 < p < 4, shape (n,).

    The fixed point contracts by |1 - p/2| a step; for p = 2 it is the leverage at once.
    Raises InputError for other p.
    """
    if not 0 < p < 4:
        raise InputError(f"Lewis weights by fixed point for p = {p:g}; expected 0 < p < 4")
    weights = torch.ones_like(rows[:, 0])
    for _ in range(steps):
        positive = weights > 0
        scale = torch.where(positive, weights, 1.0).pow(0.5 - 1 / p) * positive
        scaled = leverage_scores(rows * scale[:, None])
        forms = scaled / torch.where(positive, scale, 1.0).square()
        weights = torch.where(positive, forms.pow(p / 2), 0.0)
    return weights


def keep_probabilities(scores: Tensor, budget: float) -> Tensor:
    """Return `min(1, c s_i)` whose sum is `budget`, shape (n,), by bisection on c.

    Rows of score zero are never kept. A budget of at least the number of positive scores keeps
    all of them. Raises InputError for negative scores or a budget that is not positive.
    """
    scores = scores.double()
    if budget <= 0 or bool((scores < 0).any()) or not bool((scores > 0).any()):
        raise InputError(
            f"a budget of {budget:g} rows by scores from {float(scores.min()):g} to "
            f"{float(scores.max()):g}; expected a positive budget, and scores of at least "
            "zero that are not all zero"
        )
    positive = scores[scores > 0]
    if budget >= len(positive):
        return (scores > 0).double()
    low, high = 0.0, 1.0 / float(positive.min())
    for _ in range(200):
        middle = (low + high) / 2
        reached = float((middle * scores).clamp(max=1).sum())
        low, high = (middle, high) if reached < budget else (low, middle)
    return (high * scores).clamp(max=1)


def sample_rows(
    scores: Tensor, budget: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return indices (m,), ascending, and weights 1 / q (m,) of an independent sample.

    `sum_{i kept} w_i f(a_i)` has the expectation `sum_i f(a_i)`. Multiply rows by `w^(1/p)` to
    keep `||A x||_p^p` in expectation. m is `budget` in the mean, not exactly.
    """
    probability = keep_probabilities(scores, budget)
    drawn = torch.rand(len(probability), generator=generator, dtype=torch.float64)
    indices = (drawn.to(probability.device) < probability).nonzero().flatten()
    return indices, 1 / probability[indices]
