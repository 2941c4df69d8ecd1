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
CHUNK = 128
HIDDEN = 64
BATCH = 128


def fccov(features: Tensor, distances: Tensor) -> Tensor:
    """Return M (r, r) of features (n, r) and distances of their responses (n, n).

    Raises InputError for distances of another number of rows.
    """
    if distances.shape != (len(features), len(features)):
        raise InputError(f"distances {tuple(distances.shape)} for {len(features)} rows")
    centered = features - features.mean(0)
    result = features.new_zeros(features.shape[1], features.shape[1])
    for part in distances.split(CHUNK):
        ordered, order = part.sort(1)
        last = torch.searchsorted(ordered, ordered, right=True) - 1  # equal distances together
        within = centered[order].cumsum(1) / len(features)
        c = within.gather(1, last.unsqueeze(2).expand_as(within)).flatten(0, 1)
        result = result + c.T @ c
    return result / len(features) ** 2


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
        if self.estimator not in ("linear", "mlp"):
            raise InputError(f"estimator {self.estimator!r}; expected 'linear' or 'mlp'")
        if self.n_components < 1:
            raise InputError(f"n_components {self.n_components}; expected at least 1")
        responses = responses.reshape(len(rows), -1)
        distances = to_tensor(
            responses
            if self.metric == "precomputed"
            else pairwise_distances(responses, metric=self.metric)
        )
        if distances.shape != (len(rows), len(rows)):
            raise InputError(f"distances {tuple(distances.shape)} for {len(rows)} rows")
        self.mean_ = rows.mean(0)
        self.scale_ = rows.std(0) + 1e-12
        data = to_tensor(rows - self.mean_)
        if self.estimator == "linear":
            self.components_ = self._directions(data, distances).numpy()
        else:
            self._train(data / to_tensor(self.scale_), distances)
        self.dependence_ = float(trace(fccov(self._map(rows), distances)))
        return self

    def _directions(self, data: Tensor, distances: Tensor) -> Tensor:
        """Solve `M w = l S w` in the coordinates that make the covariance S the identity."""
        left, values, right = torch.linalg.svd(data, full_matrices=False)
        kept = values > 1e-10 * values.max()
        white = left[:, kept] * len(data) ** 0.5
        vectors = torch.linalg.eigh(fccov(white, distances)).eigenvectors.flip(1)
        whiten = len(data) ** 0.5 * right[kept].T / values[kept]
        return (whiten @ vectors[:, : self.n_components]).T.contiguous()

    def _train(self, data: Tensor, distances: Tensor) -> None:
        generator = torch_generator(self.random_state)
        self.network_ = _network(data.shape[1], self.n_components, generator)
        optimizer = torch.optim.Adam(self.network_.parameters(), lr=3e-3)
        identity = torch.eye(self.n_components, dtype=torch.float64)
        for _ in range(self.epochs):
            order = torch.randperm(len(data), generator=generator)
            for batch in order.split(BATCH):
                if len(batch) < min(BATCH, len(data)):
                    continue
                features = self.network_(data[batch])
                centered = features - features.mean(0)
                apart = centered.T @ centered / len(batch) - identity
                dependence = trace(fccov(features, distances[batch][:, batch]))
                loss = self.penalty * apart.square().sum() - dependence
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

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


def _network(width: int, outputs: int, generator: torch.Generator) -> nn.Module:
    layers = [nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(HIDDEN, outputs)).double()
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)
    return network


ESTIMATOR = FrechetSDR
