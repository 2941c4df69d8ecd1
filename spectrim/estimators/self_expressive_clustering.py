"""Self-expressive subspace clustering: `min sum_l ||H_l - C H_l||^2 + lam ||C||^2, diag C = 0`.

Each row is written as a combination of the others; rows of one subspace use each other. For
given features the optimum is in closed form,

    P = (sum_l H_l H_l^T + lam I)^-1,   C_ij = -P_ij / P_ii,   C_ii = 0

With `layers` an encoder gives the features H_1.., H_0 being the rows: it is trained to
reconstruct them, then jointly on self-expression, with one C for all layers that is solved
again in every step. With `structure` a last stage adds `tr(Q^T L Q)`, the Laplacian L of
`(|C| + |C|^T)^(1/2)` and labels Q that are estimated again in every round.

The published script leaves the diagonal free, so that `C = I` is a perfect fit, and its
pre-training loss is minimal at constant features; here the diagonal is zero, reconstruction
takes the place of that loss, and the last stage stops where its objective settles. The
regularization matters: on digits .003 in place of the default costs ten points. O(n^3) time,
O(n^2) memory; a round of the last stage is O(n^2 r^2) for features of rank r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.estimators._affinity import cluster_affinity
from spectrim.estimators._encoder import Encoder
from spectrim.estimators._sklearn import (
    BaseEstimator,
    ClusterMixin,
    read_rows,
    to_tensor,
    torch_generator,
)
from spectrim.estimators._structured_norm import (
    express_error,
    structured_norm,
    structured_step,
)
from spectrim.linalg.sparse_coding import keep_largest

REFERENCE = "LIHFSS-SVDSC, 2025, arXiv:2504.18179"
ROUNDS = 10
"""Of the last stage at most."""
SETTLED = 1e-3
"""Relative change of its objective at which it ends."""


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
        regularization: lam, as a share of `||X||^2`, the squared length of all rows together.
        dim: entries kept in each row of C, the dimension of the subspaces if it is known.
        layers: widths of the encoder; empty for the closed form on the rows themselves.
        epochs: of pre-training, and again of the joint training.
        structure: weight of the last stage's norm, in shares of the fit's objective at its
            start; 0 leaves that stage out.

    Attributes:
        labels_: (n,). affinity_matrix_: (n, n), symmetric, zero on the diagonal.
        coefficients_: C (n, n). history_: objective after each round of the last stage, for
        the labels of that round.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        regularization: float = 0.03,
        dim: int | None = None,
        layers: Sequence[int] = (),
        epochs: int = 100,
        structure: float = 0.0,
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.regularization = regularization
        self.dim = dim
        self.layers = layers
        self.epochs = epochs
        self.structure = structure
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> SelfExpressiveClustering:
        """Fit the coefficients of rows (n, d) and cluster them."""
        rows = to_tensor(read_rows(self, X, ensure_min_samples=2))
        if self.regularization <= 0 or self.structure < 0:
            raise InputError(
                f"regularization {self.regularization}, structure {self.structure}; expected a "
                "positive number, and one of at least 0"
            )
        encoder = self._trained(rows) if self.layers else None
        gram = rows @ rows.T if encoder is None else encoder.gram()
        coefficients = express_gram(gram, self._lam(gram))
        self.history_: list[float] = []
        if self.structure:
            coefficients = self._structured(gram, coefficients, encoder)
        if self.dim is not None:
            coefficients = keep_largest(coefficients, min(self.dim, len(rows) - 1))
        self.coefficients_ = coefficients.numpy()
        self.affinity_matrix_ = _affinity(coefficients).numpy()
        self.labels_ = cluster_affinity(
            self.affinity_matrix_, self.n_clusters, self.random_state
        )
        return self

    def _lam(self, gram: Tensor) -> float:
        return self.regularization * (float(gram.diagonal().sum()) or 1.0)

    def _trained(self, rows: Tensor) -> Encoder:
        encoder = Encoder(rows, self.layers, torch_generator(self.random_state))
        for _ in range(self.epochs):
            encoder.step(None)
        for _ in range(self.epochs):
            gram = encoder.gram()
            encoder.step(express_gram(gram, self._lam(gram)))
        return encoder

    def _structured(self, gram: Tensor, start: Tensor, encoder: Encoder | None) -> Tensor:
        """Alternate labels, coefficients and, with one, a step of the encoder."""
        coefficients, lam, beta = start, self._lam(gram), 0.0
        for _ in range(ROUNDS):
            found = cluster_affinity(
                _affinity(coefficients).numpy(), self.n_clusters, self.random_state
            )
            labels = torch.from_numpy(found).long()
            if not self.history_:
                size = float(structured_norm(coefficients, labels)) or 1.0
                beta = self.structure * float(express_error(gram, coefficients, lam)) / size
            coefficients = structured_step(gram, coefficients, labels, lam, beta)
            if encoder is not None:
                encoder.step(coefficients)
                gram = encoder.gram()
            norm = beta * structured_norm(coefficients, labels)
            self.history_.append(float(express_error(gram, coefficients, lam) + norm))
            if _has_settled(self.history_):
                break
        return coefficients


def _affinity(coefficients: Tensor) -> Tensor:
    return (coefficients.abs() + coefficients.abs().T) / 2


def _has_settled(history: list[float]) -> bool:
    return len(history) > 1 and abs(history[-1] - history[-2]) <= SETTLED * abs(history[-1])


ESTIMATOR = SelfExpressiveClustering
