"""FCCov, the dependence of features on the balls of a response, and its leading directions."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.errors import InputError

CHUNK = 128
"""Anchors at once."""
ROUNDING = 1e-10
"""Singular values below this share of the largest are none."""


def fccov(features: Tensor, distances: Tensor) -> Tensor:
    """Return M (r, r) of features (n, r) and distances of their responses (n, n).

    Raises InputError for distances of another number of rows.
    """
    check_distances(distances, len(features))
    centered = features - features.mean(0)
    result = features.new_zeros(features.shape[1], features.shape[1])
    for part in distances.split(CHUNK):
        ordered, order = part.sort(1)
        last = torch.searchsorted(ordered, ordered, right=True) - 1  # equal distances together
        within = centered[order].cumsum(1) / len(features)
        c = within.gather(1, last.unsqueeze(2).expand_as(within)).flatten(0, 1)
        result = result + c.T @ c
    return result / len(features) ** 2


def check_distances(distances: Tensor, rows: int) -> None:
    """Raise InputError unless distances are (rows, rows)."""
    if distances.shape != (rows, rows):
        raise InputError(f"distances {tuple(distances.shape)} for {rows} rows")


def dependent_directions(rows: Tensor, distances: Tensor, count: int) -> Tensor:
    """Return the top `w` (count, d) of `M w = l S w`, S the covariance of centered rows (n, d).

    Solved in the span of the rows, in coordinates that make S the identity.
    """
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    kept = values > ROUNDING * values.max()
    white = left[:, kept] * len(rows) ** 0.5
    vectors = torch.linalg.eigh(fccov(white, distances)).eigenvectors.flip(1)
    whiten = len(rows) ** 0.5 * right[kept].T / values[kept]
    return (whiten @ vectors[:, :count]).T.contiguous()
