"""The step that subspace clustering ends in: spectral clustering of an affinity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spectrim.errors import InputError
from spectrim.estimators._sklearn import Array

RESTARTS = 20


def cluster_affinity(affinity: Array, n_clusters: int, random_state: Any) -> Array:
    """Return labels (n,) of a symmetric non-negative affinity (n, n)."""
    from sklearn.cluster import spectral_clustering

    if not 1 <= n_clusters <= len(affinity):
        raise InputError(f"{n_clusters} clusters of {len(affinity)} rows; expected 1 to that")
    labels: Array = spectral_clustering(
        affinity, n_clusters=n_clusters, n_init=RESTARTS, random_state=random_state
    )
    return labels


def affinity_of(coefficients: Tensor) -> Tensor:
    """Return `(|C| + |C|^T) / 2` (n, n)."""
    return (coefficients.abs() + coefficients.abs().T) / 2
