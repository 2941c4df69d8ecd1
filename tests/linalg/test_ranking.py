"""Rank statistics against SciPy and against counting pairs."""

from __future__ import annotations

import pytest
import torch

from spectrim.linalg.ranking import auroc, average_ranks, rank_correlation
from tests.tolerances import FLOAT64_RELATIVE


def scores(count: int, seed: int) -> torch.Tensor:
    """Small whole numbers: many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 12, (count,), generator=generator).double()


def test_ranks_and_their_correlation_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    one, other = scores(50, 0), scores(50, 1) + scores(50, 0)
    assert average_ranks(one).tolist() == stats.rankdata(one.numpy()).tolist()
    expected = stats.spearmanr(one.numpy(), other.numpy()).statistic
    assert rank_correlation(one, other) == pytest.approx(expected, rel=FLOAT64_RELATIVE)
    assert rank_correlation(one, one.exp()) == pytest.approx(1.0)


def test_a_constant_has_no_correlation():
    assert rank_correlation(torch.ones(4), scores(4, 0)) is None
    assert rank_correlation(torch.ones(1), torch.ones(1)) is None


def test_auroc_counts_pairs():
    low, high = scores(30, 2), scores(20, 3) + 3
    pairs = high[:, None] - low
    expected = float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean())
    assert auroc(low, high) == pytest.approx(expected, rel=FLOAT64_RELATIVE)
    assert auroc(low, low + 100) == 1.0
