"""Self-expressive subspace clustering: `min sum_l ||H_l - C H_l||^2 + lam ||C||^2, diag C = 0`.

Each row is written as a combination of the others; rows of one subspace use each other. For
given features the optimum is in closed form,

    P = (sum_l H_l H_l^T + lam I)^-1,   C_ij = -P_ij / P_ii,   C_ii = 0

With `layers` an encoder gives the features H_1.., H_0 being the rows: it is trained to
reconstruct them, then jointly on self-expression, with one C for all layers that is solved
again in every step. The free diagonal of the published script makes `C = I` a perfect fit, so
it is zero here; its pre-training loss is minimal at constant features, so reconstruction takes
its place; its last stage, a norm structured by labels that it estimates itself, is left out.
The regularization matters: on digits a bad one costs twenty points. O(n^3) time, O(n^2) memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.estimators._affinity import cluster_affinity
from spectrim.estimators._sklearn import (
    BaseEstimator,
    ClusterMixin,
    read_rows,
    to_tensor,
    torch_generator,
)
from spectrim.linalg.sparse_coding import keep_largest

REFERENCE = "LIHFSS-SVDSC, 2025, arXiv:2504.18179"
EXPRESS_WEIGHT = 0.1
"""Of the self-expression relative to the reconstruction, both per feature."""


def self_expression(rows: Tensor, regularization: float) -> Tensor:
    """Return C (n, n) of rows (n, d), zero on the diagonal."""
    return express_gram(rows @ rows.T, regularization)


def express_gram(gram: Tensor, regularization: float) -> Tensor:
    """Return C (n, n) from the Gram matrix of the rows."""
    damped = gram + regularization * torch.eye(len(gram), dtype=gram.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    coefficients = -inverse / inverse.diagonal()[:, None]
    return coefficients.fill_diagonal_(0)


class SelfExpressiveClustering(ClusterMixin, BaseEstimator):
    """Cluster rows that lie near a union of subspaces.

    Args:
        n_clusters: k.
        regularization: lam, in mean squared lengths of a row.
        dim: entries kept in each row of C, the dimension of the subspaces if it is known.
        layers: widths of the encoder; empty for the closed form on the rows themselves.
        epochs: of pre-training, and again of the joint training.

    Attributes:
        labels_: (n,). affinity_matrix_: (n, n), symmetric, zero on the diagonal.
        coefficients_: C (n, n).
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        regularization: float = 1.0,
        dim: int | None = None,
        layers: Sequence[int] = (),
        epochs: int = 100,
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.regularization = regularization
        self.dim = dim
        self.layers = layers
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> SelfExpressiveClustering:
        """Fit the coefficients of rows (n, d) and cluster them."""
        rows = to_tensor(read_rows(self, X, ensure_min_samples=2))
        if self.regularization <= 0:
            raise InputError(
                f"regularization {self.regularization}; expected a positive number"
            )
        gram = rows @ rows.T
        if self.layers:
            gram = self._trained_gram(rows)
        scale = float(gram.diagonal().mean())
        coefficients = express_gram(gram, self.regularization * (scale or 1.0))
        if self.dim is not None:
            coefficients = keep_largest(coefficients, min(self.dim, len(rows) - 1))
        affinity = (coefficients.abs() + coefficients.abs().T) / 2
        self.coefficients_, self.affinity_matrix_ = coefficients.numpy(), affinity.numpy()
        self.labels_ = cluster_affinity(
            self.affinity_matrix_, self.n_clusters, self.random_state
        )
        return self

    def _trained_gram(self, rows: Tensor) -> Tensor:
        """Train the encoder; return the mean Gram matrix of its layers and of the rows."""
        generator = torch_generator(self.random_state)
        scaled = rows / rows.square().mean().sqrt().clamp_min(1e-300)
        model = _Autoencoder([rows.shape[1], *self.layers], generator)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for epoch in range(2 * self.epochs):
            hidden, rebuilt = model(scaled)
            loss = (rebuilt - scaled).square().mean()
            if epoch >= self.epochs:
                with torch.no_grad():
                    gram = _mean_gram(hidden)
                    lam = self.regularization * float(gram.diagonal().mean())
                    express = express_gram(gram, lam)
                parts = [(h - express @ h).square().mean() for h in hidden[1:]]
                loss = loss + EXPRESS_WEIGHT * torch.stack(parts).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return _mean_gram(model(scaled)[0])


def _mean_gram(layers: list[Tensor]) -> Tensor:
    """Return the mean of the layers' Gram matrices, each scaled to a mean diagonal of one."""
    grams = [h @ h.T for h in layers]
    return torch.stack([g / g.diagonal().mean().clamp_min(1e-300) for g in grams]).mean(0)


class _Autoencoder(nn.Module):
    def __init__(self, widths: list[int], generator: torch.Generator):
        super().__init__()
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.Linear(b, a) for a, b in reversed(pairs))
        for layer in [*self.down, *self.up]:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.double()

    def forward(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        hidden = [rows]
        for layer in self.down:
            hidden.append(torch.tanh(layer(hidden[-1])))
        rebuilt = hidden[-1]
        for number, layer in enumerate(self.up):
            rebuilt = layer(torch.tanh(rebuilt) if number else rebuilt)
        return hidden, rebuilt


ESTIMATOR = SelfExpressiveClustering
