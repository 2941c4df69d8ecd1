"""Coding rate and its reduction by a grouping: smooth measures of rank (MCR2).

    R(Z) = log det(I + d / (n eps^2) Z^T Z)
    R_c(Z, P) = sum_j t_j / n log det(I + d / (t_j eps^2) Z^T diag(P_j) Z),   t_j = sum_i P_ij
    reduction = R - R_c >= 0

for rows Z (n, d) and memberships P (n, g) >= 0 whose rows sum to one: one-hot labels give MCR2,
a doubly stochastic (n, n) affinity gives MLC. Rates are in nats, without the factor 1/2.

Y. Yu et al., 2020, arXiv:2006.08558; T. Ding et al., 2023, arXiv:2301.01805.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coding_rate(rows: Tensor, eps: float = 0.5) -> Tensor:
    """Return R of rows (n, d): a scalar that depends on their singular values alone.

    Cost O(n d min(n, d)): the determinant is taken on the smaller side.
    """
    count, width = rows.shape
    return log_det_identity_plus(rows, width / (count * eps**2))


def log_det_identity_plus(rows: Tensor, scale: float) -> Tensor:
    """Return `log det(I + scale Z^T Z)` of rows (..., n, d), shape (...)."""
    count, width = rows.shape[-2:]
    gram = rows @ rows.mT if count < width else rows.mT @ rows
    identity = torch.eye(gram.shape[-1], dtype=rows.dtype, device=rows.device)
    factor = torch.linalg.cholesky(identity + scale * gram)
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def group_coding_rate(rows: Tensor, membership: Tensor, eps: float = 0.5) -> Tensor:
    """Return R_c of rows (n, d) under memberships (n, g); empty groups count nothing.

    Cost O(g n d min(n, d)), memory O(g n d).
    """
    count, width = rows.shape
    sizes = membership.sum(0)
    kept = sizes > 0
    shares = membership[:, kept] / sizes[kept]
    weighted = rows * _safe_sqrt(shares.T).unsqueeze(-1)
    rates = log_det_identity_plus(weighted, width / eps**2)
    return (sizes[kept] / count * rates).sum()


def rate_reduction(rows: Tensor, membership: Tensor, eps: float = 0.5) -> Tensor:
    """Return `R - R_c`: how many nats per row the grouping saves; larger = keep apart."""
    return coding_rate(rows, eps) - group_coding_rate(rows, membership, eps)


def _safe_sqrt(values: Tensor) -> Tensor:
    """Take roots whose gradient at zero is zero instead of infinite."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)
