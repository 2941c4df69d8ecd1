"""Reduce X for any response with a distance: top directions of `M = E[c c^T]` (FCCov).

    M = E_{Y', Y''}[ c c^T ],   c = Cov( f(X), 1{ d(Y, Y') <= d(Y'', Y') } )

tr M is zero only if the mean of f(X) does not depend on the balls of Y, whatever space Y lives
in; monotone changes of d do not change it. The linear case takes the top generalized
eigenvectors of (M, Cov X) for f(x) = x. A network maximizes `tr M - lam ||Cov f - I||_F^2`
instead, with lam = .1 by default, since tr M is a few hundredths and lam = 1 drowns it. Each
anchor's row of distances is sorted once and f summed along it: O(n^2 log n + n^2 r) and memory
O(n r) an anchor. It is far more robust to outliers in y than least squares; for scalar y a
Huber loss is as good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.estimators._dependence import check_distances, dependent_directions, fccov
from spectrim.estimators._networks import Training, initialize, make_layers
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    check_is_fitted,
    read_pairs,
    read_rows,
    to_tensor,
    torch_generator,
)
from spectrim.linalg.spd import trace

REFERENCE = "FCCov-Net, 2025, arXiv:2502.15374"
HIDDEN, BATCH, RATE = 64, 128, 3e-3


class FrechetSDR(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Find the directions of X on which the response depends.

    Args:
        n_components: directions, or outputs of the network; at most d in the linear case.
        metric: of the responses: a name or function that scikit-learn's `pairwise_distances`
            takes, or "precomputed" where y holds distances (n, n).
        estimator: "linear" or "mlp".
        penalty: lam of the network. epochs: passes of the network over the rows.

    Attributes:
        components_: (k, d) of the linear case, unit variance along each and uncorrelated.
        mean_: (d,). dependence_: tr M of the transformed training rows.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        metric: str | Callable[..., Any] = "euclidean",
        estimator: str = "linear",
        penalty: float = 0.1,
        epochs: int = 100,
        random_state: Any = None,
    ):
        self.n_components = n_components
        self.metric = metric
        self.estimator = estimator
        self.penalty = penalty
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> FrechetSDR:
        """Fit rows (n, d) and responses (n,), (n, q), or distances (n, n)."""
        from sklearn.metrics import pairwise_distances

        rows, responses = read_pairs(self, X, y, multi_output=True, ensure_min_samples=2)
        if self.estimator not in ("linear", "mlp") or self.n_components < 1:
            raise InputError(
                f"estimator {self.estimator!r}, n_components {self.n_components}; expected "
                "'linear' or 'mlp', and at least 1"
            )
        given = responses.reshape(len(rows), -1)
        if self.metric != "precomputed":
            given = pairwise_distances(given, metric=self.metric)
        distances = to_tensor(given)
        check_distances(distances, len(rows))
        self.mean_ = rows.mean(0)
        self.scale_ = rows.std(0) + 1e-12
        data = to_tensor(rows - self.mean_)
        if self.estimator == "linear":
            self.components_ = dependent_directions(data, distances, self.n_components).numpy()
        else:
            self._train(data / to_tensor(self.scale_), distances)
        self.dependence_ = float(trace(fccov(self._map(rows), distances)))
        return self

    def _train(self, data: Tensor, distances: Tensor) -> None:
        generator = torch_generator(self.random_state)
        layers = make_layers([data.shape[1], HIDDEN, HIDDEN])
        network = nn.Sequential(*layers, nn.Linear(HIDDEN, self.n_components)).double()
        initialize(network, generator)
        identity = torch.eye(self.n_components, dtype=torch.float64)

        def loss(batch: Tensor) -> Tensor:
            features = network(data[batch])
            centered = features - features.mean(0)
            apart = centered.T @ centered / len(batch) - identity
            dependence = trace(fccov(features, distances[batch][:, batch]))
            return self.penalty * apart.square().sum() - dependence

        Training(self.epochs, BATCH, RATE, whole=True).run(network, loss, len(data), generator)
        self.network_ = network

    @torch.no_grad()
    def _map(self, rows: Array) -> Tensor:
        data = to_tensor(rows - self.mean_)
        if self.estimator == "linear":
            return data @ to_tensor(self.components_).T
        features: Tensor = self.network_(data / to_tensor(self.scale_))
        return features

    def transform(self, X: Any) -> Array:
        """Return the reduced rows (n, k)."""
        check_is_fitted(self)
        features: Array = self._map(read_rows(self, X, reset=False)).numpy()
        return features

    @property
    def _n_features_out(self) -> int:
        return len(self.components_) if self.estimator == "linear" else self.n_components

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


ESTIMATOR = FrechetSDR
