"""Covariances of few tokens are shrunk in every form, and with enough tokens not touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.linalg.covariance import BlockDiagonal, LowRankDiagonal
from spectrim.statistics import ENOUGH, is_few, shrink

CHANNELS = 24


def covariance(tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, CHANNELS, dtype=torch.float64)
    rows = torch.randn(tokens, CHANNELS, generator=generator, dtype=torch.float64) * scale
    return rows.T @ rows / tokens


def dense(value: object) -> Tensor:
    return value if isinstance(value, Tensor) else value.dense()  # type: ignore[attr-defined]


def test_enough_tokens_change_nothing() -> None:
    matrix = covariance(ENOUGH * CHANNELS)
    assert shrink(matrix, ENOUGH * CHANNELS) is matrix
    assert not is_few(ENOUGH * CHANNELS, CHANNELS)


@pytest.mark.parametrize("tokens", [1, 5, CHANNELS - 1])
def test_identity_is_added_and_the_rest_stays(tokens: int) -> None:
    matrix = covariance(tokens)
    added = dense(shrink(matrix, tokens)) - matrix
    amount = float(added[0, 0])
    assert torch.allclose(added, amount * torch.eye(CHANNELS, dtype=torch.float64))
    assert 0 < amount <= float(matrix.diagonal().mean()) * (1 + 1e-12)


def test_more_tokens_are_shrunk_less() -> None:
    def amount(tokens: int) -> float:
        matrix = covariance(tokens)
        added = dense(shrink(matrix, tokens)) - matrix
        return float(added[0, 0] / matrix.diagonal().mean())

    assert amount(2) == pytest.approx(1.0)
    assert amount(23) < amount(12) < 1.0


def test_every_form_is_shrunk_alike() -> None:
    matrix = covariance(10)
    values, vectors = torch.linalg.eigh(matrix)
    factor = vectors * values.clamp_min(0).sqrt()
    low_rank = LowRankDiagonal(factor, torch.zeros(CHANNELS))
    blocks = BlockDiagonal([matrix])
    expected = dense(shrink(matrix, 10))
    assert torch.allclose(dense(shrink(low_rank, 10)), expected)
    assert torch.allclose(dense(shrink(blocks, 10)), expected)


def test_the_truth_is_nearer() -> None:
    """Eigenvalues of eight Gaussian vectors in 24 channels: most are zero."""
    truth = torch.logspace(0, -4, CHANNELS, dtype=torch.float64).diag()
    sample = covariance(8)
    shrunk = dense(shrink(sample, 8))

    def log_det_distance(matrix: Tensor) -> float:
        product = torch.linalg.solve(truth, matrix + 1e-6 * torch.eye(CHANNELS))
        return float(torch.linalg.eigvals(product).real.clamp_min(1e-12).log().abs().mean())

    assert log_det_distance(shrunk) < 0.7 * log_det_distance(sample)
