"""Low rank under gross errors of entries: `min sum | X - L R^T |`, small start (SubGM).

X (n, d) is the sum of a matrix of rank at most k and of errors of any size in some of the
entries, 20 to 30% of them where the rank is small (measured). Unlike robust PCA by convex
optimization it needs no weight and no singular value decomposition in its steps, O(n d k) each.
The true rank may be smaller than k. New rows are coded by least absolute deviations
(iteratively reweighted), so that errors in their entries do not count either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    check_is_fitted,
    read_rows,
    to_tensor,
)
from spectrim.linalg.measurements import Entries
from spectrim.linalg.robust_recovery import SubgradientOptions, robust_recover

REFERENCE = "Ma and Fattahi, 2022, arXiv:2202.08788"
QUICK = {"max_iter": 200, "decay": 0.94}
REWEIGHTED = 60
FLOOR = 1e-9
"""Residuals below this share of the largest weigh alike."""


class RobustLowRank(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Separate a low-rank matrix from gross errors in its entries.

    Args:
        max_rank: of the low-rank part; at most min(n, d).
        tol: directions whose singular value is below this share of the largest are left out:
            surplus ones do not vanish entirely.
        init_scale: size of the start; smaller is more exact where the rank is too large.
        decay: of the step length, per step.
        max_iter: steps.

    Attributes:
        components_: (k, d), orthonormal rows that span the low-rank part.
        history_: mean absolute residual before each step.
    """

    def __init__(
        self,
        max_rank: int = 2,
        *,
        tol: float = 1e-2,
        init_scale: float = 1e-3,
        decay: float = 0.99,
        max_iter: int = 1500,
    ):
        self.max_rank = max_rank
        self.tol = tol
        self.init_scale = init_scale
        self.decay = decay
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any = None) -> RobustLowRank:
        """Fit the subspace of the low-rank part of rows (n, d)."""
        rows = read_rows(self, X)
        options = SubgradientOptions(
            init_scale=self.init_scale, decay=self.decay, steps=self.max_iter
        )
        entries = Entries.all_of((rows.shape[0], rows.shape[1]))
        rank = min(self.max_rank, *rows.shape)
        found = robust_recover(entries, to_tensor(rows).flatten(), rank, options)
        left, right = torch.linalg.qr(found.left).R, torch.linalg.qr(found.right)
        _, values, turn = torch.linalg.svd(left @ right.R.T)
        kept = turn[values >= self.tol * values[0]]
        self.components_ = (kept @ right.Q.T).contiguous().numpy()
        self.history_, self.n_iter_ = found.history, len(found.history) - 1
        return self

    def transform(self, X: Any) -> Array:
        """Return coordinates (n, k) of the low-rank part of each row."""
        check_is_fitted(self)
        rows = to_tensor(read_rows(self, X, reset=False))
        coordinates: Array = least_absolute_codes(rows, to_tensor(self.components_).T).numpy()
        return coordinates

    def inverse_transform(self, X: Any) -> Array:
        """Return the low-rank part (n, d) of coordinates (n, k)."""
        low_rank: Array = X @ self.components_
        return low_rank

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def least_absolute_codes(rows: Tensor, basis: Tensor) -> Tensor:
    """Return `argmin_h || x - U h ||_1` of each row x of (n, d), shape (n, k)."""
    codes = rows @ basis
    for _ in range(REWEIGHTED):
        residual = (rows - codes @ basis.T).abs()
        least = FLOOR * residual.amax(1, keepdim=True).clamp_min(1e-300)
        weights = 1 / residual.clamp_min(least)
        weights = weights / weights.amax(1, keepdim=True)
        normal = torch.einsum("nd,dk,dl->nkl", weights, basis, basis)
        identity = torch.eye(basis.shape[1], dtype=rows.dtype)
        size = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        target = (weights * rows) @ basis
        damped = normal + 1e-12 * size * identity
        codes = torch.linalg.solve(damped, target.unsqueeze(2)).squeeze(2)
    return codes


ESTIMATOR = RobustLowRank
