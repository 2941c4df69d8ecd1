"""Sensitivity sampling: keep row i with chance c s_i, `s_i = max_x |a_i^T x|^p / ||A x||_p^p`.

A kept row weighs the inverse of its probability, so that `||A x||_p^p` is kept in expectation,
and within eps for all x at once with about `S^(2/p) / eps^2` rows for 1 <= p < 2 and `S^(2 -
2/p) / eps^2` for p > 2, S the sum of the scores, instead of S d. For p = 2 scores are leverage,
O(n d^2). Exact ones for other p take a convex problem a row (a linear program for p = 1) and
are for small n; Lewis weights are their surrogate in practice. Root leverage scores do for 1 <=
p < 2 alone. Uniform samples miss rare directions; the scores do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spectrim.errors import InputError
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    read_rows,
    to_tensor,
    torch_generator,
)
from spectrim.linalg.leverage import leverage_scores, lewis_weights, sample_rows

REFERENCE = "Woodruff and Yasuda, ICML 2023, arXiv:2306.00732"
METHODS = ("leverage", "root_leverage", "lewis", "sensitivity", "uniform")


def sensitivities(rows: Array, p: float) -> Array:
    """Return the lp sensitivities (n,) of rows (n, d) for p >= 1.

    `1 / s_i = min ||A x||_p^p` subject to `a_i^T x = 1`. Zero rows have none. Raises InputError
    for p < 1, where the problem is not convex.
    """
    if p < 1:
        raise InputError(f"sensitivities for p = {p:g}; expected p >= 1")
    if p == 2:
        scores: Array = leverage_scores(to_tensor(rows)).numpy()
        return scores
    least = _least_absolute if p == 1 else _least_power
    return np.array([1 / least(rows, row, p) if row.any() else 0.0 for row in rows])


def _least_absolute(rows: Array, row: Array, p: float) -> float:
    """Solve `min sum t, -t <= A x <= t, a^T x = 1` as a linear program."""
    from scipy.optimize import linprog

    count, width = rows.shape
    cost = np.r_[np.zeros(width), np.ones(count)]
    above = np.block([[rows, -np.eye(count)], [-rows, -np.eye(count)]])
    equal = np.r_[row, np.zeros(count)][None]
    free = [(None, None)] * width + [(0, None)] * count
    found = linprog(cost, above, np.zeros(2 * count), equal, [1.0], free, method="highs")
    return float(found.fun)


def _least_power(rows: Array, row: Array, p: float) -> float:
    """Solve `min ||A x||_p^p, a^T x = 1` in the coordinates that satisfy the constraint."""
    from scipy.linalg import null_space
    from scipy.optimize import minimize

    base, free = row / (row @ row), null_space(row[None])

    def value(z: Array) -> tuple[float, Array]:
        image = rows @ (base + free @ z)
        size = np.abs(image)
        slope = p * np.sign(image) * size ** (p - 1)
        return float((size**p).sum()), (slope @ rows) @ free

    start = np.linalg.lstsq(rows @ free, -(rows @ base), rcond=None)[0]
    if not free.size:
        return value(start)[0]
    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-12}
    return float(minimize(value, start, jac=True, method="L-BFGS-B", options=options).fun)


class SensitivitySampler(BaseEstimator):
    """Choose rows and weights that stand for all rows in `||A x||_p^p`.

    Args:
        budget: rows kept in the mean.
        p: of the norm.
        method: "leverage", "root_leverage", "lewis", "sensitivity" (exact, slow) or "uniform".
        ridge: added to `A^T A` for leverage.

    Attributes:
        scores_: (n,). indices_: kept rows, ascending. weights_: of the kept rows; multiply
        rows by `weights_^(1/p)`, or pass them as sample weights.
    """

    def __init__(
        self,
        budget: float = 100,
        *,
        p: float = 2.0,
        method: str = "leverage",
        ridge: float = 0.0,
        random_state: Any = None,
    ):
        self.budget = budget
        self.p = p
        self.method = method
        self.ridge = ridge
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> SensitivitySampler:
        """Score rows (n, d) and draw the sample."""
        rows = read_rows(self, X)
        self.scores_ = self._scores(rows)
        generator = torch_generator(self.random_state)
        indices, weights = sample_rows(to_tensor(self.scores_), self.budget, generator)
        self.indices_, self.weights_ = indices.numpy(), weights.numpy()
        return self

    def fit_sample(self, X: Any, y: Any = None) -> tuple[Array, Array]:
        """Return the kept rows (m, d) and their weights (m,)."""
        self.fit(X)
        return np.asarray(X)[self.indices_], self.weights_

    def _scores(self, rows: Array) -> Array:
        if self.method == "root_leverage" and self.p >= 2:
            raise InputError(f"root leverage scores for p = {self.p:g}; they serve p < 2")
        if self.method == "uniform":
            return np.ones(len(rows))
        if self.method == "sensitivity":
            return sensitivities(rows, self.p)
        if self.method == "lewis":
            weights: Array = lewis_weights(to_tensor(rows), self.p).numpy()
            return weights
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r}; expected one of {', '.join(METHODS)}")
        leverage: Array = leverage_scores(to_tensor(rows), self.ridge).numpy()
        return np.sqrt(leverage) if self.method == "root_leverage" else leverage


ESTIMATOR = SensitivitySampler
