"""Randomized smoothing: the vote of a classifier under Gaussian noise, with a certified radius.

    R = sigma Phi^-1(p),   p a lower bound of the top class's probability

J. Cohen, E. Rosenfeld, J. Z. Kolter, 2019, arXiv:1902.02918.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spectrim.errors import InputError
from spectrim.estimators._confidence import clopper_pearson_lower
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClassifierMixin,
    check_classification_targets,
    check_is_fitted,
    check_random_state,
    clone,
    read_pairs,
    read_rows,
)

ABSTAIN = -1
"""Label of rows for which nothing is certain."""
CHUNK = 100_000
"""Noisy rows that are classified at once."""


class RandomizedSmoothing(ClassifierMixin, BaseEstimator):
    """Classify by the vote under Gaussian noise, with a radius within which it cannot change.

    Args:
        estimator: classifier; logistic regression by default. It is trained on noisy copies.
        sigma: standard deviation of the noise, in the units of X.
        n0, n: draws that choose the label, and that bound its probability.
        alpha: chance that a certificate is wrong.
        copies: noisy copies of each training row.

    Attributes:
        parts_: masks (parts, d) of the features. estimators_: one classifier a part. classes_.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        sigma: float = 0.25,
        n0: int = 100,
        n: int = 1000,
        alpha: float = 0.001,
        copies: int = 10,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.sigma = sigma
        self.n0 = n0
        self.n = n
        self.alpha = alpha
        self.copies = copies
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> RandomizedSmoothing:
        """Train on noisy copies of rows (n, d) with labels (n,)."""
        from sklearn.linear_model import LogisticRegression

        rows, labels = read_pairs(self, X, y)
        check_classification_targets(labels)
        if self.sigma <= 0:
            raise InputError(f"sigma {self.sigma}; expected a positive number")
        if not 0 < self.alpha < 1 or min(self.n0, self.n, self.copies) < 1:
            raise InputError(
                f"alpha {self.alpha}, n0 {self.n0}, n {self.n}, copies {self.copies}; expected "
                "alpha between 0 and 1 and all others from 1"
            )
        self.classes_, index = np.unique(labels, return_inverse=True)
        base = LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator
        random = check_random_state(self.random_state)
        many, targets = np.repeat(rows, self.copies, 0), np.repeat(index, self.copies)
        self.parts_ = self._parts(rows.shape[1])
        noisy = many + self.sigma * random.normal(size=many.shape)
        self.estimators_ = [clone(base).fit(noisy[:, part], targets) for part in self.parts_]
        return self

    def _parts(self, width: int) -> Array:
        return np.ones((1, width), dtype=bool)

    def _counts(self, rows: Array, draws: int, stream: int) -> Array:
        """Return votes (n, parts, classes); each row meets the same noise."""
        random = np.random.default_rng([stream, self._seed()])
        noise = self.sigma * random.normal(size=(draws, rows.shape[1]))
        counts = np.zeros((len(rows), len(self.parts_), len(self.classes_)), dtype=int)
        at_once = max(1, CHUNK // draws)
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            noisy = (some[:, None] + noise).reshape(-1, rows.shape[1])
            for number, (part, model) in enumerate(
                zip(self.parts_, self.estimators_, strict=True)
            ):
                votes = model.predict(noisy[:, part]).reshape(len(some), draws)
                for label in range(len(self.classes_)):
                    counts[first : first + at_once, number, label] = (votes == label).sum(1)
        return counts

    def _seed(self) -> int:
        return self.random_state if isinstance(self.random_state, int) else 0

    def predict(self, X: Any) -> Array:
        """Return the label of the most votes (n,), certified or not."""
        check_is_fitted(self)
        counts = self._counts(read_rows(self, X, reset=False), self.n0, 0)
        labels: Array = self.classes_[counts.sum(1).argmax(1)]
        return labels

    def certify(self, X: Any) -> tuple[Array, Array]:
        """Return the index of the class (n,), ABSTAIN where nothing is certain, and radii (n,).

        Each radius is wrong with chance at most alpha, over the draws of the noise.
        """
        check_is_fitted(self)
        rows = read_rows(self, X, reset=False)
        chosen = self._counts(rows, self.n0, 0).sum(1).argmax(1)
        hits = self._counts(rows, self.n, 1)[np.arange(len(rows)), :, chosen]
        bounds = clopper_pearson_lower(hits, self.n, self.alpha / len(self.parts_))
        radius = self._radius(bounds)
        return np.where(radius > 0, chosen, ABSTAIN), radius

    def _radius(self, bounds: Array) -> Array:
        from scipy.stats import norm

        return np.maximum(self.sigma * norm.ppf(bounds[:, 0]), 0.0)

    def certified_radius(self, X: Any) -> Array:
        """Return l2 radii (n,) within which `predict`'s limit label cannot change, or zero."""
        return self.certify(X)[1]
