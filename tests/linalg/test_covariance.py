"""Covariances by their parts: every operation is that of the dense matrix, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.errors import NumericalError
from spectrim.linalg.covariance import (
    BlockDiagonal,
    LowRankDiagonal,
    centered,
    dense,
    make_metric,
)
from spectrim.linalg.metric import CovarianceMetric
from spectrim.linalg.truncated import weighted_svd
from tests.tolerances import FLOAT64_RELATIVE

WIDTH = 13


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gram(width: int, rank: int, seed: int = 0) -> Tensor:
    rows = drawn(rank, width, seed=seed)
    return rows.T @ rows


COVARIANCES = {
    "block_diagonal": BlockDiagonal([gram(4, 9), gram(6, 9, 1), gram(3, 9, 2)]),
    "a silent block": BlockDiagonal([gram(7, 9), torch.zeros(6, 6, dtype=torch.float64)]),
    "low rank": LowRankDiagonal(drawn(WIDTH, 3), drawn(WIDTH).square()),
    "diagonal": LowRankDiagonal(drawn(WIDTH, 0), drawn(WIDTH).square()),
    "no rest": LowRankDiagonal(drawn(WIDTH, 3), torch.zeros(WIDTH)),
}
covariances = pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES)


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm()) <= FLOAT64_RELATIVE * float(expected.norm())


@covariances
def test_products_and_diagonal(covariance):
    matrix, wide = covariance.dense(), drawn(5, WIDTH, seed=3)
    assert covariance.shape == matrix.shape
    assert close(covariance.diagonal(), matrix.diagonal())
    assert close(covariance @ wide.T, matrix @ wide.T)
    assert close(wide @ covariance, wide @ matrix)
    assert close(wide @ covariance @ wide.T, wide @ matrix @ wide.T)


@covariances
def test_torch_sees_the_matrix(covariance):
    assert close(torch.linalg.eigvalsh(covariance), torch.linalg.eigvalsh(dense(covariance)))
    assert close(drawn(WIDTH, WIDTH) - covariance, drawn(WIDTH, WIDTH) - covariance.dense())
    assert dense(covariance.dense()) is not None


@covariances
@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_the_metric_is_that_of_the_matrix(covariance, damping):
    found = make_metric(covariance, damping, "c")
    matrix, wide = CovarianceMetric(covariance.dense(), damping).covariance, drawn(WIDTH, 5)
    root = found.whiten(torch.eye(WIDTH, dtype=torch.float64)).T
    assert close(root @ root.T, matrix)
    assert close(found.unwhiten(found.whiten(wide)), wide)
    assert close(found.color(wide), root @ wide)
    assert close(found.gram(wide), wide.T @ matrix @ wide)


@pytest.mark.parametrize("shape", [(7, WIDTH), (WIDTH, 7)])
@covariances
def test_the_optimum_is_that_of_the_matrix(covariance, shape):
    """At every rank the approximation itself, not only its error."""
    weight, wide = drawn(*shape, seed=5), shape[1] == WIDTH
    other = CovarianceMetric(gram(7, 9, 4), 1e-3)
    pairs = [
        (other, metric) if wide else (metric, other)
        for metric in (
            make_metric(covariance, 1e-2, "c"),
            make_metric(covariance.dense(), 1e-2, "c"),
        )
    ]
    found, expected = (weighted_svd(weight, *pair) for pair in pairs)
    assert close(found.spectrum, expected.spectrum)
    for rank in (1, 3, 7):
        assert close(found.weight(rank), expected.weight(rank))


@pytest.mark.parametrize("rank", [1, 4])
def test_a_sketch_of_low_rank_is_exact(rank):
    matrix, test = gram(WIDTH, rank), drawn(WIDTH, 4, seed=8)
    found = LowRankDiagonal.from_sketch(matrix @ test, test, matrix.diagonal())
    assert close(found.dense(), matrix)


def test_a_sketch_stays_below_and_keeps_the_diagonal():
    matrix, test = gram(WIDTH, 20), drawn(WIDTH, 4, seed=8)
    found = LowRankDiagonal.from_sketch(matrix @ test, test, matrix.diagonal())
    below = matrix - found.factor @ found.factor.T
    assert torch.linalg.eigvalsh(below).min() >= -FLOAT64_RELATIVE * matrix.norm()
    assert close(found.diagonal(), matrix.diagonal())


def test_about_the_mean_they_stay_positive():
    """Each is what would be kept of the centred matrix, exact where that is small enough."""
    rows, test = drawn(3, WIDTH) + 2.0, drawn(WIDTH, 4, seed=8)
    matrix, mean = rows.T @ rows / 3, rows.mean(0)
    wanted = centered(matrix, mean)
    sketched = LowRankDiagonal.from_sketch(matrix @ test, test, matrix.diagonal())
    assert close(sketched.centered(mean).dense(), wanted)
    blocks = BlockDiagonal([matrix[:6, :6], matrix[6:, 6:]])
    assert close(
        centered(blocks, mean).dense(), torch.block_diag(wanted[:6, :6], wanted[6:, 6:])
    )


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_without_signal_it_is_an_error(bad):
    for covariance in (
        BlockDiagonal([torch.full((3, 3), bad), torch.full((2, 2), bad)]),
        LowRankDiagonal(torch.full((5, 2), bad), torch.full((5,), bad)),
    ):
        with pytest.raises(NumericalError, match="thing"):
            make_metric(covariance, 1e-3, "thing")
