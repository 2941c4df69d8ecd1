"""Sparse Bayesian learning with Kronecker support: `x ~ N(0, diag(g_1 (x) ... (x) g_I))`.

    y = (A_1 (x) ... (x) A_I) x + noise,    minimize over g_i >= 0 in the M-step
    sum log gamma + lam / gamma,            lam = mean^2 + variance of the posterior

"am" updates one factor at a time, `g_i <- mean over the other modes of lam / (g_j (x) ...)`,
which never raises the cost; "svd" takes the best rank-one tensor of lam, mode by mode, is
approximate, needs fewer rounds, and is the more accurate as published. The posterior
comes from the eigenvectors of each `diag(sqrt g_i) A_i^T A_i diag(sqrt g_i)`, so it costs
`O(sum N_i^3 + prod N_i sum N_i)` instead of O(m^2 N). One factor is classical SBL. For a weight
matrix of a large layer N = out * in is too much: this is for small blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    RegressorMixin,
    check_is_fitted,
    read_pairs,
    read_rows,
    to_tensor,
)
from spectrim.linalg.sparse_bayes import SparseOptions, solve_kronecker_sbl

REFERENCE = "He and Joseph, IEEE TSP 2024, arXiv:2307.14719"


class KroneckerSBL(RegressorMixin, BaseEstimator):
    """Regress on columns that lie on a grid, of which a sub-grid matters.

    Args:
        shape: of the grid, with prod = columns of X, the last mode fastest; None for one mode
            (classical sparse Bayesian learning).
        update: "svd" or "am". noise: variance of y, or None to estimate it.

    Attributes:
        coef_: (d,). intercept_. gammas_: one array a mode. noise_: variance.
    """

    def __init__(
        self,
        shape: Sequence[int] | None = None,
        *,
        update: str = "svd",
        noise: float | None = None,
        max_iter: int = 150,
        tol: float = 1e-4,
    ):
        self.shape = shape
        self.update = update
        self.noise = noise
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any) -> KroneckerSBL:
        """Fit coefficients to rows (n, d) and responses (n,); both are centered."""
        rows, targets = read_pairs(self, X, y, y_numeric=True)
        sizes = tuple(self.shape) if self.shape is not None else (rows.shape[1],)
        center, self.intercept_ = rows.mean(0), float(targets.mean())
        design, response = to_tensor(rows - center), to_tensor(targets - self.intercept_)
        options = SparseOptions(self.noise, self.update, self.max_iter, self.tol)
        found = solve_kronecker_sbl([design], response, options, sizes)
        self.coef_ = found.mean.flatten().numpy()
        self.gammas_ = [gamma.numpy() for gamma in found.gammas]
        self.noise_, self.n_iter_ = found.noise, len(found.history)
        self.intercept_ -= float(center @ self.coef_)
        return self

    def predict(self, X: Any) -> Array:
        check_is_fitted(self)
        values: Array = read_rows(self, X, reset=False) @ self.coef_ + self.intercept_
        return values


ESTIMATOR = KroneckerSBL
