"""Symmetric products against plain ones, and how many operations they take."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spectrim.linalg.symmetric_products import gram, symmetric_product, triangular_product
from tests.tolerances import FLOAT64_RELATIVE


def rows(count: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 64, 129, 517])
def test_equal_plain_products(width):
    matrix = rows(70, width)
    weights = rows(1, 70).square().squeeze(0)
    for found, expected in (
        (gram(matrix), matrix.T @ matrix),
        (symmetric_product(matrix, weights[:, None] * matrix), (matrix.T * weights) @ matrix),
    ):
        scale = float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=0, atol=FLOAT64_RELATIVE * scale)


@pytest.mark.parametrize("width", [1, 129, 517])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_with_a_triangle(width, transposed):
    lower, matrix = rows(width, width).tril(), rows(width, 5)
    expected = (lower.T if transposed else lower) @ matrix
    found = triangular_product(lower, matrix, transposed)
    assert float((found - expected).norm()) <= FLOAT64_RELATIVE * float(expected.norm())


def test_a_triangle_leaves_out_what_is_zero():
    with FlopCounterMode(display=False) as counter:
        triangular_product(rows(2048, 2048).tril(), rows(2048, 16))
    assert counter.get_total_flops() < 0.6 * 2 * 2048**2 * 16


def test_take_about_half_the_operations():
    matrix = rows(70, 2048)
    with FlopCounterMode(display=False) as counter:
        gram(matrix)
    assert counter.get_total_flops() < 0.6 * 2 * 70 * 2048**2
