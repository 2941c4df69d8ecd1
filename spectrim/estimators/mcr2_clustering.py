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

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.estimators._affinity import cluster_affinity
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
HIDDEN = 128


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
        network = _Heads(self.backbone, data, self.n_components, generator)
        spread = self.noise * data.std(0)

        def warm(batch: Tensor) -> Tensor:
            copies = [
                network(batch + spread * torch.randn(batch.shape, generator=generator))[0]
                for _ in range(2)
            ]
            near = (copies[0] * copies[1]).sum(1).abs().mean()
            return -coding_rate((copies[0] + copies[1]) / 2, self.eps) - self.similarity * near

        def cluster(batch: Tensor) -> Tensor:
            features, codes = network(batch)
            return -rate_reduction(features, self._affinity(codes), self.eps)

        self.history_ = self._train(network, warm, data, self.warmup, generator)
        network.copy_head()
        self.history_ += self._train(network, cluster, data, self.epochs, generator)
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

    def _train(
        self, network: nn.Module, loss_of: Any, data: Tensor, epochs: int, generator: Any
    ) -> list[float]:
        """Minimize a loss of batches; return its mean in each pass."""
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        history = []
        for _ in range(epochs):
            batches = torch.randperm(len(data), generator=generator).split(self.batch_size)
            losses = []
            for batch in batches:
                loss = loss_of(data[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            history.append(sum(losses) / len(losses))
        return history

    @torch.no_grad()
    def transform(self, X: Any) -> Array:
        """Return the features (n, k), rows of length one."""
        check_is_fitted(self)
        rows = read_rows(self, X, reset=False)
        features: Array = self.network_(self._scaled(rows))[0].double().numpy()
        return features


class _Heads(nn.Module):
    def __init__(
        self,
        backbone: nn.Module | None,
        data: Tensor,
        width: int,
        generator: torch.Generator,
    ):
        super().__init__()
        shapes = [(data.shape[1], HIDDEN), (HIDDEN, HIDDEN)]
        layers = [m for a, b in shapes for m in (nn.Linear(a, b), nn.ReLU())]
        self.backbone = nn.Sequential(*layers) if backbone is None else deepcopy(backbone)
        inner = self.backbone(data[:1]).shape[1]
        self.features, self.clusters = nn.Linear(inner, width), nn.Linear(inner, width)
        fresh = [self.features] if backbone is not None else [*layers, self.features]
        for layer in fresh:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)

    def copy_head(self) -> None:
        self.clusters.load_state_dict(self.features.state_dict())

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.backbone(rows)
        normalize = nn.functional.normalize
        return normalize(self.features(inner), dim=1), normalize(self.clusters(inner), dim=1)


ESTIMATOR = ManifoldClustering
