"""Spectral probe `acc(d)` and cut head `W V_d V_d^T` of trained features (Malignant Tail).

Features of a network trained on noisy labels carry the classes in their leading directions and
memorized noise in the trailing ones. V_d holds the leading d right singular vectors of the
centered features Z (n, D). The probe fits a classifier on `Z V_d` for each d; the head is cut
without refitting, `logits = W (V_d V_d^T (z - mu) + mu) + b`. It helps against symmetric label
noise, little against noise that depends on the class, and not at all without noise. One SVD,
O(n D min(n, D)), and one classifier for each rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClassifierMixin,
    TransformerMixin,
    check_classification_targets,
    check_is_fitted,
    clone,
    read_pairs,
    read_rows,
    to_tensor,
)
from spectrim.linalg.psd import check_finite
from spectrim.linalg.spectrum import effective_rank

REFERENCE = "The Malignant Tail, 2026, arXiv:2603.02293"


class SpectralProbe(TransformerMixin, ClassifierMixin, BaseEstimator):
    """Classify by the leading directions of the features.

    Args:
        rank: directions that `predict` uses: a number, "classes" (as many as classes), or
            "effective" (exp of the spectrum's entropy, rounded). None needs clean labels.
        ranks: further ranks of the curve.
        estimator: classifier that is fitted for each rank; logistic regression by default.

    Attributes:
        components_: (min(n, D), D), orthonormal rows. mean_: (D,). singular_values_.
        rank_: the rank that `predict` uses. probes_: fitted classifier by rank.
    """

    def __init__(
        self, rank: int | str = "classes", *, ranks: Sequence[int] = (), estimator: Any = None
    ):
        self.rank = rank
        self.ranks = ranks
        self.estimator = estimator

    def fit(self, X: Any, y: Any) -> SpectralProbe:
        """Fit one classifier a rank to features (n, D) and labels (n,)."""
        from sklearn.linear_model import LogisticRegression

        rows, targets = read_pairs(self, X, y)
        check_classification_targets(targets)
        self.classes_ = np.unique(targets)
        self.mean_ = rows.mean(0)
        _, values, right = torch.linalg.svd(to_tensor(rows - self.mean_), full_matrices=False)
        self.components_, self.singular_values_ = right.numpy(), values.numpy()
        self.rank_ = self._chosen(values)
        base = LogisticRegression(max_iter=2000) if self.estimator is None else self.estimator
        coordinates = (rows - self.mean_) @ self.components_.T
        self.probes_ = {
            rank: clone(base).fit(coordinates[:, :rank], targets)
            for rank in sorted({self.rank_, *(min(r, len(values)) for r in self.ranks)})
        }
        return self

    def _chosen(self, values: Tensor) -> int:
        if self.rank == "classes":
            wanted = len(self.classes_)
        elif self.rank == "effective":
            wanted = round(effective_rank(values)) if bool(values.any()) else 1
        elif isinstance(self.rank, int) and self.rank >= 1:
            wanted = self.rank
        else:
            raise InputError(
                f"rank {self.rank!r}; expected a positive number, 'classes' or 'effective'"
            )
        return min(wanted, len(values))

    def curve(self, X: Any, y: Any) -> dict[int, float]:
        """Return the accuracy on held-out rows by rank."""
        coordinates = self.transform(X)
        return {
            rank: float(probe.score(coordinates[:, :rank], y))
            for rank, probe in self.probes_.items()
        }

    def transform(self, X: Any) -> Array:
        """Return coordinates (n, min(n, D)), leading first."""
        check_is_fitted(self)
        coordinates: Array = (read_rows(self, X, reset=False) - self.mean_) @ self.components_.T
        return coordinates

    def predict(self, X: Any) -> Array:
        coordinates = self.transform(X)[:, : self.rank_]
        labels: Array = self.probes_[self.rank_].predict(coordinates)
        return labels


@torch.no_grad()
def truncate_head(head: nn.Linear, features: Tensor, rank: int) -> nn.Linear:
    """Return a head of rank `rank` that reads the leading directions of features (n, D) alone.

    The bias takes over what the mean had in the cut directions, so that the logits of the mean
    stay. Raises InputError for an impossible rank or features of another width, and
    NumericalError for features that are not finite.
    """
    if not 1 <= rank <= head.in_features:
        raise InputError(f"rank {rank} of {head.in_features} features; expected 1 to that many")
    if features.dim() != 2 or features.shape[1] != head.in_features:
        raise InputError(
            f"features {tuple(features.shape)}; expected (n, {head.in_features}), the inputs "
            "of the head"
        )
    check_finite(features, "features")
    rows, weight = features.double(), head.weight.double()
    mean = rows.mean(0)
    right = torch.linalg.svd(rows - mean, full_matrices=False)[2][:rank]
    cut = weight @ right.T @ right
    shift = (weight - cut) @ mean
    result = nn.Linear(head.in_features, head.out_features).to(head.weight)
    result.weight.copy_(cut)
    result.bias.copy_(shift if head.bias is None else shift + head.bias.double())
    return result


ESTIMATOR = SpectralProbe
