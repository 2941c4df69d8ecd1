"""Statistics of ranks: what a score orders rightly, whatever its scale.

correlation = Pearson correlation of the ranks                              (Spearman)
auroc       = P(score of a positive > score of a negative) + 1/2 P(equal)   (Mann-Whitney)
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Return the ranks 1 .. n of values (n,) in float64; equal values share their mean rank."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Return Spearman's correlation of (n,) and (n,); None where one of them is constant."""
    ranks = [average_ranks(values) for values in (first, second)]
    one, other = (rank - rank.mean() for rank in ranks)
    scale = float(one.norm() * other.norm()) if len(one) > 1 else 0.0
    return float(one @ other) / scale if scale > 0 else None


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Return the area under the ROC curve of scores (m,) of negatives and (n,) of positives."""
    ranks = average_ranks(torch.cat([negatives, positives]))
    above = float(ranks[len(negatives) :].sum()) - len(positives) * (len(positives) + 1) / 2
    return above / (len(negatives) * len(positives))
