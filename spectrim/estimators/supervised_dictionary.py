"""Supervised dictionary: `min loss(y, X W beta + b [1; z]) + xi ||X - H W^T||^2`, rank r.

Covariates z enter the regression and not the dictionary. The filter variant classifies by
filtered rows, activation `X W beta`; the feature variant by codes, activation `H beta`. Lifting
`A = W beta` (or `H beta`) and the reconstruction into one matrix of rank r makes both steps of
projected gradient explicit. With its own step length for each block, `t` for A and `1 / (2 xi)`
for the reconstruction, the projection is a truncated SVD of

    [A / sqrt(t), sqrt(2 xi) X^T]   (filter),      [A / sqrt(t), sqrt(2 xi) X]   (feature)

so the reconstruction is solved exactly in every step, however X is scaled, and the objective
never rises. Extrapolation is dropped where it would. A step costs O(n p q + (p + q)^3). It
gains over PCA and a classifier where directions that tell the classes apart have little
variance, if xi is small enough to give up the variance of others for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spectrim.errors import InputError
from spectrim.estimators._lift import Lift, with_ones
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClassifierMixin,
    TransformerMixin,
    check_classification_targets,
    check_is_fitted,
    read_pairs,
    read_rows,
    to_tensor,
)

REFERENCE = "Lee, Lyu and Yao, 2022, arXiv:2206.06774"
QUICK = {"max_iter": 50}


class SupervisedDictionary(TransformerMixin, ClassifierMixin, BaseEstimator):
    """Learn a dictionary that reconstructs rows and tells classes apart.

    Args:
        n_components: r, at most min(n, p).
        variant: "filter" or "feature".
        tradeoff: xi, weight of the squared reconstruction error of all rows.
        ridge: nu, weight of `||A||^2 / 2`.
        max_iter, tol: projected gradient steps, and the relative decrease that ends them.

    Attributes:
        components_: (r, p), the dictionary `W^T`; orthonormal rows in the filter variant.
        coef_: (r, q). intercept_: (1 + c, q), of 1 and of the covariates.
        history_: objective after each step, not increasing.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        variant: str = "filter",
        tradeoff: float = 1.0,
        ridge: float = 0.0,
        max_iter: int = 1000,
        tol: float = 1e-7,
    ):
        self.n_components = n_components
        self.variant = variant
        self.tradeoff = tradeoff
        self.ridge = ridge
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any, covariates: Any = None) -> SupervisedDictionary:
        """Fit rows (n, p) and labels (n,), with covariates (n, c) if there are any."""
        rows, labels = read_pairs(self, X, y)
        check_classification_targets(labels)
        if self.variant not in ("filter", "feature"):
            raise InputError(f"variant {self.variant!r}; expected 'filter' or 'feature'")
        if self.n_components < 1 or min(self.tradeoff, self.ridge) < 0:
            raise InputError(
                f"n_components {self.n_components}, tradeoff {self.tradeoff}, ridge "
                f"{self.ridge}; expected at least 1, 0 and 0"
            )
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("a classifier needs two classes; y has one class")
        one_hot = torch.eye(len(self.classes_), dtype=torch.float64)[torch.from_numpy(index)]
        targets = one_hot[:, 1:] if len(self.classes_) == 2 else one_hot
        rank, filters = min(self.n_components, *rows.shape), self.variant == "filter"
        beside, data = with_ones(covariates, len(rows)), to_tensor(rows)
        lift = Lift(data, targets, beside, rank, self.tradeoff, self.ridge, filters)
        a, b, basis, self.history_ = lift.solve(self.max_iter, self.tol)
        self.components_ = (basis.T if filters else basis.T @ data).contiguous().numpy()
        self.coef_, self.intercept_ = (basis.T @ a).numpy(), b.numpy()
        self.n_iter_ = len(self.history_)
        return self

    def transform(self, X: Any) -> Array:
        """Return `X W` (n, r), or the least-squares codes of the feature variant."""
        check_is_fitted(self)
        rows = read_rows(self, X, reset=False)
        if self.variant == "filter":
            filtered: Array = rows @ self.components_.T
            return filtered
        codes: Array = rows @ np.linalg.pinv(self.components_)
        return codes

    def reconstruct(self, X: Any) -> Array:
        """Return `H W^T` (n, p)."""
        rebuilt: Array = self.transform(X) @ self.components_
        return rebuilt

    def predict_proba(self, X: Any, covariates: Any = None) -> Array:
        """Return the probability of each class (n, classes)."""
        codes = self.transform(X)
        beside = with_ones(covariates, len(codes))
        if beside.shape[1] != len(self.intercept_):
            raise InputError(
                f"{beside.shape[1] - 1} covariates; fitted with {len(self.intercept_) - 1}"
            )
        score = to_tensor(codes @ self.coef_) + beside @ to_tensor(self.intercept_)
        if score.shape[1] == 1:
            score = torch.cat([torch.zeros_like(score), score], dim=1)
        probabilities: Array = score.softmax(1).numpy()
        return probabilities

    def predict(self, X: Any, covariates: Any = None) -> Array:
        best = self.predict_proba(X, covariates).argmax(1)
        labels: Array = self.classes_[best]
        return labels


ESTIMATOR = SupervisedDictionary
