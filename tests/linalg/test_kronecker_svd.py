"""The Kronecker-product SVD against its definition."""

from __future__ import annotations

import pytest
import torch

from spectrim.linalg.kronecker_svd import kronecker_sum, kronecker_svd, rearrange, square_blocks
from tests.tolerances import FLOAT64_RELATIVE

SHAPES = [(12, 12), (24, 20), (8, 30), (7, 12)]


def matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_the_energy_of_the_tail(shape):
    weight = matrix(shape)
    first, spectrum, second = kronecker_svd(weight, square_blocks(shape))
    for rank in (0, 1, 3, len(spectrum)):
        sum_ = kronecker_sum(spectrum[:rank, None, None] * first[:rank], second[:rank])
        error = (weight - sum_).square().sum()
        tail = spectrum[rank:].square().sum()
        assert float(error) == pytest.approx(float(tail), rel=FLOAT64_RELATIVE, abs=1e-20)


def test_sum_is_that_of_kronecker_products():
    first, second = matrix((3, 8)).view(3, 2, 4), matrix((3, 15), 1).view(3, 5, 3)
    expected = sum(torch.kron(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(kronecker_sum(first, second), expected)


def test_one_product_is_of_rank_one_and_a_plain_reshape_is_not():
    weight = torch.kron(matrix((4, 3)), matrix((3, 5), 1))
    blocks = (4, 3, 3, 5)
    arranged = torch.linalg.svdvals(rearrange(weight, blocks))
    assert arranged[1] <= 1e-12 * arranged[0]
    reshaped = torch.linalg.svdvals(weight.reshape(12, 15))
    assert reshaped[1] > 0.01 * reshaped[0]


def test_blocks_of_one_row_give_the_singular_value_decomposition():
    weight = matrix((9, 6))
    spectrum = kronecker_svd(weight, (9, 1, 1, 6))[1]
    torch.testing.assert_close(spectrum, torch.linalg.svdvals(weight))


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((4096, 4096), (64, 64, 64, 64)), ((24, 20), (6, 4, 5, 4)), ((7, 12), (7, 1, 4, 3))],
)
def test_blocks_are_nearest_to_squares(shape, blocks):
    assert square_blocks(shape) == blocks
