"""Swapping a row and a pivot against computing the coefficients anew."""

from __future__ import annotations

import pytest
import torch

from spectrim.linalg.pivoting import COEFFICIENT_BOUND, _coefficients, _swap_largest, pivot_rows
from tests.tolerances import FLOAT64_RELATIVE


@pytest.mark.parametrize("seed", range(5))
def test_swap_update_equals_recomputation(seed):
    """From the worst start: the rows of least volume as pivots."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(15, 4, generator=generator, dtype=torch.float64)
    left[:4] *= 0.05
    pivots, others = torch.arange(4), torch.arange(4, 15)
    coefficients = _coefficients(left, pivots, others)
    swaps = 0
    while _swap_largest(coefficients, pivots, others):
        swaps += 1
        anew = _coefficients(left, pivots, others)
        assert float((coefficients - anew).norm()) <= FLOAT64_RELATIVE * float(anew.norm())
        assert sorted([*pivots.tolist(), *others.tolist()]) == list(range(15))
        assert swaps < 100
    assert swaps >= 3
    assert float(coefficients.abs().max()) <= COEFFICIENT_BOUND


def test_the_factor_is_not_changed_and_float32_is_taken():
    left = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    before = left.clone()
    pivots, coefficients = pivot_rows(left)
    assert torch.equal(left, before)
    assert pivots.dtype == torch.int64
    assert coefficients.dtype == torch.float64
