"""Impute missing entries by a low-rank fit: `min || P(L R^T - X) ||`, alternating (AltMin).

Rows are samples with NaN where nothing was observed. `fit` alternates ridge problems of rows
and columns (`spectrim.linalg.completion`) and keeps R (d, k); `transform` solves for the factor
of each row from what was observed of it and fills in the rest. Observed entries stay as they
are. A row or column without any entry is refused: nothing determines it. O(observed k) a round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    TransformerMixin,
    check_is_fitted,
    read_rows,
    to_tensor,
)
from spectrim.linalg.completion import CompletionOptions, complete, solve_rows
from spectrim.linalg.measurements import Entries

REFERENCE = "Gu, Song, Yin and Zhang, ICLR 2024, arXiv:2302.11068"


class LowRankImputer(TransformerMixin, BaseEstimator):
    """Fill in NaN by a matrix of low rank.

    Args:
        rank: of the fit; at most min(n, d).
        ridge: relative to the mean diagonal of the normal equations; 1e-12 suits exact
            low rank with enough entries, larger values noisy tables.
        max_iter: rounds at most.

    Attributes:
        components_: (k, d), orthonormal rows. history_: relative residual on the observed
        entries after each round. converged_: whether it settled.
    """

    def __init__(self, rank: int = 2, *, ridge: float = 1e-6, max_iter: int = 100):
        self.rank = rank
        self.ridge = ridge
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any = None) -> LowRankImputer:
        """Fit the factors to rows (n, d). Raises InputError if one is all NaN."""
        rows = read_rows(self, X, ensure_all_finite="allow-nan")
        entries, values = _observed(rows)
        options = CompletionOptions(rounds=self.max_iter, ridge=self.ridge)
        found = complete(entries, values, min(self.rank, *rows.shape), options)
        self.components_ = torch.linalg.qr(found.right).Q.T.contiguous().numpy()
        self.history_, self.converged_ = found.history, found.converged
        self.n_iter_ = len(found.history)
        return self

    def transform(self, X: Any) -> Array:
        """Return the rows with every NaN filled in (n, d). Raises InputError for a row without
        any observed entry.
        """
        check_is_fitted(self)
        rows = read_rows(self, X, reset=False, ensure_all_finite="allow-nan")
        entries, values = _observed(rows)
        Entries(entries.rows, entries.rows, (len(rows), len(rows))).check()
        basis = to_tensor(self.components_).T
        start = values.new_zeros(len(rows), basis.shape[1])
        exact = CompletionOptions(ridge=self.ridge, inner_steps=2 * basis.shape[1])
        filled = (solve_rows(entries, values, basis, start, exact) @ basis.T).numpy()
        return np.where(np.isnan(rows), filled, rows)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _observed(rows: Array) -> tuple[Entries, Tensor]:
    index = np.argwhere(~np.isnan(rows))
    where = torch.from_numpy(index)
    shape = (rows.shape[0], rows.shape[1])
    return Entries(where[:, 0], where[:, 1], shape), to_tensor(rows[index[:, 0], index[:, 1]])


ESTIMATOR = LowRankImputer
