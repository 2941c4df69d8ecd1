"""Manifold linearizing and clustering: `max R(Z) - R_c(Z, Gamma)` over features and clusters.

    Z = f(X), unit rows;   Gamma = Sinkhorn(C C^T / eta), C = h(X), doubly stochastic
    R = log det(I + d / (n eps^2) Z^T Z),   R_c: mean over the groups Gamma_j (MLC, MCR2)

One backbone has two heads. It is first trained without clusters, `max R((Z + Z') / 2) + lam
mean |z_i^T z'_i|` over two noisy copies of each row, then the feature head is copied into the
cluster head and both are trained on the reduction. Labels are a spectral clustering of Gamma
over all rows. Classes become orthogonal subspaces of low dimension. A batch of b rows costs
O(b k^3 + b^2 k^2), memory O(b k (b + k)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.estimators._affinity import cluster_affinity
from spectrim.estimators._networks import Training, TwoHeads
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClusterMixin,
    TransformerMixin,
    check_is_fitted,
    read_rows,
    to_tensor,
    torch_generator,
)
from spectrim.linalg.coding_rate import coding_rate, rate_reduction
from spectrim.linalg.sinkhorn import symmetric_sinkhorn

REFERENCE = "Ding et al., ICCV 2023, arXiv:2301.01805"
QUICK = {"warmup": 2, "epochs": 2, "n_components": 8}
RATE = 1e-3


class ManifoldClustering(ClusterMixin, TransformerMixin, BaseEstimator):
    """Cluster rows on a union of manifolds and make the manifolds linear.

    Args:
        n_clusters: number of clusters.
        backbone: a module from (n, d) to (n, width), copied and trained; a two-layer network by
            default.
        n_components: dimension of the features.
        eps: allowed distortion of a unit row. entropy: eta of the doubly stochastic matrix.
        noise: standard deviation of the copies' noise, in those of each column.
        similarity: lam. warmup, epochs: passes before and with clusters.

    Attributes:
        labels_: (n,). affinity_matrix_: Gamma (n, n). history_: loss after each pass.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        backbone: nn.Module | None = None,
        n_components: int = 32,
        eps: float = 0.3,
        entropy: float = 0.2,
        noise: float = 0.3,
        similarity: float = 20.0,
        warmup: int = 50,
        epochs: int = 50,
        batch_size: int = 256,
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.backbone = backbone
        self.n_components = n_components
        self.eps = eps
        self.entropy = entropy
        self.noise = noise
        self.similarity = similarity
        self.warmup = warmup
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> ManifoldClustering:
        """Train the network on rows (n, d) and cluster them."""
        rows = read_rows(self, X, ensure_min_samples=2)
        self.mean_, self.scale_ = rows.mean(0), rows.std() or 1.0
        data = self._scaled(rows)
        generator = torch_generator(self.random_state)
        network = TwoHeads(self.backbone, data, self.n_components, generator)
        spread = self.noise * data.std(0)

        def noisy(batch: Tensor) -> Tensor:
            noise = torch.randn(len(batch), data.shape[1], generator=generator)
            features: Tensor = network(data[batch] + spread * noise)[0]
            return features

        def warm(batch: Tensor) -> Tensor:
            first, second = noisy(batch), noisy(batch)
            near = (first * second).sum(1).abs().mean()
            return -coding_rate((first + second) / 2, self.eps) - self.similarity * near

        def cluster(batch: Tensor) -> Tensor:
            features, codes = network(data[batch])
            return -rate_reduction(features, self._affinity(codes), self.eps)

        def train(epochs: int, loss: Callable[[Tensor], Tensor]) -> list[float]:
            settings = Training(epochs, self.batch_size, RATE)
            return settings.run(network, loss, len(data), generator)

        self.history_ = train(self.warmup, warm)
        network.copy_head()
        self.history_ += train(self.epochs, cluster)
        self.network_ = network
        with torch.no_grad():
            self.affinity_matrix_ = self._affinity(network(data)[1]).double().numpy()
        self.labels_ = cluster_affinity(
            self.affinity_matrix_, self.n_clusters, self.random_state
        )
        return self

    def _affinity(self, codes: Tensor) -> Tensor:
        return symmetric_sinkhorn(codes @ codes.T, self.entropy)

    def _scaled(self, rows: Array) -> Tensor:
        return to_tensor((rows - self.mean_) / self.scale_).float()

    @torch.no_grad()
    def transform(self, X: Any) -> Array:
        """Return the features (n, k), rows of length one."""
        check_is_fitted(self)
        rows = read_rows(self, X, reset=False)
        features: Array = self.network_(self._scaled(rows))[0].double().numpy()
        return features


ESTIMATOR = ManifoldClustering
