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
from spectrim.estimators._affinity import affinity_of, cluster_affinity
from spectrim.estimators._encoder import Encoder
from spectrim.estimators._sklearn import (
    Array,
    BaseEstimator,
    ClusterMixin,
    read_rows,
    to_tensor,
    torch_generator,
)
from spectrim.estimators._structured_norm import LastStage
from spectrim.linalg.sparse_coding import keep_largest

REFERENCE = "LIHFSS-SVDSC, 2025, arXiv:2504.18179"


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
        lam = self._lam(gram)
        coefficients = express_gram(gram, lam)
        self.history_: list[float] = []
        if self.structure:
            stage = LastStage(lam, self.structure, self._labels)
            coefficients, self.history_ = stage.run(gram, coefficients, encoder)
        if self.dim is not None:
            coefficients = keep_largest(coefficients, min(self.dim, len(rows) - 1))
        self.coefficients_ = coefficients.numpy()
        self.affinity_matrix_ = affinity_of(coefficients).numpy()
        self.labels_ = self._labels(coefficients)
        return self

    def _labels(self, coefficients: Tensor) -> Array:
        affinity = affinity_of(coefficients).numpy()
        return cluster_affinity(affinity, self.n_clusters, self.random_state)

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


ESTIMATOR = SelfExpressiveClustering
