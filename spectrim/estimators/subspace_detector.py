"""Residual outside a principal subspace: `s(x) = || (I - U U^T)(x - mu) ||^2` (SubspaceAD).

U (d, k) spans the leading eigenvectors of the covariance of normal rows, k the fewest that
reach a share of the variance. A row is anomalous where the subspace does not explain it. A fit
costs O(n d^2 + d^3), a score O(d k), and the model d k numbers, where a memory bank keeps n d.
Moments merge, so rows may come in batches (`partial_fit`), whose result is that of one fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spectrim.errors import InputError
from spectrim.estimators._moments import Moments, score_limit
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
    check_is_fitted,
    read_rows,
    to_tensor,
)
from spectrim.linalg.grassmann import principal_subspace, projection_residual

REFERENCE = "Lendering et al., SubspaceAD, CVPR 2026, arXiv:2602.23013"
DISTANCES = ("residual", "mahalanobis", "cosine")


class SubspaceDetector(
    ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin, BaseEstimator
):
    """Detect rows outside the principal subspace of normal rows.

    Args:
        n_components: directions kept, at most min(n, d) - 1, or the share of the variance
            that they reach.
        distance: "residual"; "mahalanobis", the squared distance within the subspace in its own
            standard deviations; or "cosine", the residual's share of `||x - mu||^2`.
        contamination: share of the training rows called outliers, or "auto" for the limit that
            99% of Gaussian rows keep (Box's approximation from the cut eigenvalues).

    Attributes:
        components_: (k, d), orthonormal rows. mean_: (d,). eigenvalues_: (d,), descending.
        offset_: `decision_function = score_samples - offset_`, negative for outliers.
    """

    mean_: Array
    scatter_: Array

    def __init__(
        self,
        n_components: float = 0.99,
        *,
        distance: str = "residual",
        contamination: float | str = 0.01,
    ):
        self.n_components = n_components
        self.distance = distance
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> SubspaceDetector:
        """Fit the subspace and the limit to normal rows (n, d)."""
        rows = read_rows(self, X, ensure_min_samples=2)
        share = self.contamination
        if share != "auto" and (isinstance(share, str) or not 0 < share <= 0.5):
            raise InputError(f"contamination {share!r}; expected 'auto' or a share up to 0.5")
        self.n_samples_seen_ = 0
        self._add(rows)
        if share != "auto":
            self.offset_ = np.quantile(self._score(rows), float(share)).item()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> SubspaceDetector:
        """Add rows. The offset is the automatic one, since a quantile needs all rows."""
        first = not hasattr(self, "n_samples_seen_")
        rows = read_rows(self, X, reset=first, ensure_min_samples=2 if first else 1)
        self.n_samples_seen_ = 0 if first else self.n_samples_seen_
        self._add(rows)
        return self

    def _add(self, rows: Array) -> None:
        """Merge the moments of new rows, then take the subspace."""
        if self.distance not in DISTANCES:
            known = ", ".join(DISTANCES)
            raise InputError(f"distance {self.distance!r}; expected one of {known}")
        moments = Moments.of(rows)
        if self.n_samples_seen_:
            moments = Moments(self.n_samples_seen_, self.mean_, self.scatter_).merged(moments)
        self.n_samples_seen_, self.mean_, self.scatter_ = moments
        covariance = to_tensor(self.scatter_ / (self.n_samples_seen_ - 1))
        basis, values = principal_subspace(covariance, self.n_components)
        most = min(self.n_samples_seen_, len(values)) - 1
        self.components_ = basis[:, :most].T.contiguous().numpy()
        self.eigenvalues_ = values.numpy()
        self.offset_ = -score_limit(self.distance, values, len(self.components_))

    def _score(self, rows: Array) -> Array:
        centered, basis = to_tensor(rows - self.mean_), to_tensor(self.components_).T
        if self.distance == "mahalanobis":
            inside = to_tensor(self.eigenvalues_)[: basis.shape[1]].clamp_min(1e-300)
            return -((centered @ basis).square() / inside).sum(1).numpy()
        residual = projection_residual(centered, basis)
        if self.distance == "cosine":
            residual = residual / centered.square().sum(1).clamp_min(1e-300)
        scores: Array = -residual.numpy()
        return scores

    def score_samples(self, X: Any) -> Array:
        """Return minus the anomaly score of each row (n,): higher is more normal."""
        check_is_fitted(self)
        return self._score(read_rows(self, X, reset=False))

    def decision_function(self, X: Any) -> Array:
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Array:
        """Return +1 for inliers and -1 for outliers (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def transform(self, X: Any) -> Array:
        """Return coordinates (n, k) in the subspace."""
        check_is_fitted(self)
        coordinates: Array = (read_rows(self, X, reset=False) - self.mean_) @ self.components_.T
        return coordinates

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


ESTIMATOR = SubspaceDetector
