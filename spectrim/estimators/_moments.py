"""Moments of rows that merge, and limits of the scores of a subspace detector."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spectrim.estimators._sklearn import Array

CONFIDENCE = 0.99
"""Share of normal rows that the automatic limit accepts."""


class Moments(NamedTuple):
    """Number of rows, mean (d,) and scatter (d, d) about it."""

    rows: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, rows: Array) -> Moments:
        mean = rows.mean(0)
        centered = rows - mean
        return cls(len(rows), mean, centered.T @ centered)

    def merged(self, other: Moments) -> Moments:
        total, shift = self.rows + other.rows, other.mean - self.mean
        between = np.outer(shift, shift) * (self.rows * other.rows / total)
        mean = self.mean + shift * (other.rows / total)
        return Moments(total, mean, self.scatter + other.scatter + between)


def weighted_chi_square(weights: Tensor, level: float) -> float:
    """Return the quantile of `sum_i w_i z_i^2`, z standard normal, by Box's approximation: a
    multiple of chi-square with the same mean and variance. Exact for equal weights.
    """
    from scipy.stats import chi2

    first, second = float(weights.sum()), float(weights.square().sum())
    return second / first * float(chi2.ppf(level, first**2 / second)) if second else 0.0


def score_limit(distance: str, values: Tensor, kept: int) -> float:
    """Return the score of a subspace detector that CONFIDENCE of Gaussian rows stay below.

    values: eigenvalues (d,), descending, of which the subspace has the first `kept`.
    """
    weights = torch.ones(kept) if distance == "mahalanobis" else values[kept:]
    scale = float(values.sum()) if distance == "cosine" else 1.0
    return weighted_chi_square(weights, CONFIDENCE) / (scale or 1.0)
