"""Coding rates against MCR2's formulas."""

from __future__ import annotations

import pytest
import torch

from spectrim.linalg.coding_rate import coding_rate, group_coding_rate, rate_reduction
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE

EPS = 0.4


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(free, dim=1)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=FLOAT64_RELATIVE, atol=ROUNDING_ABSOLUTE)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_the_rate_depends_on_singular_values_alone(shape):
    z = rows(*shape)
    scale = shape[1] / (shape[0] * EPS**2)
    expected = torch.log1p(scale * torch.linalg.svdvals(z).square()).sum()
    assert_close(coding_rate(z, EPS), expected)


def test_the_gradient_is_the_closed_form():
    z = rows(9, 4).requires_grad_()
    scale = 4 / (9 * EPS**2)
    (found,) = torch.autograd.grad(coding_rate(z, EPS), z)
    identity = torch.eye(4).double()
    assert_close(found, 2 * scale * z @ torch.linalg.inv(identity + scale * z.T @ z))


def test_hard_labels_give_the_rates_of_the_classes():
    z, labels = rows(10, 3), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    membership = torch.nn.functional.one_hot(labels, 4).double()
    expected = sum(
        (labels == k).double().mean() * coding_rate(z[labels == k], EPS) for k in range(3)
    )
    assert_close(group_coding_rate(z, membership, EPS), expected)
    shared = membership @ (membership / membership.sum(0).clamp_min(1)).T
    assert_close(group_coding_rate(z, shared, EPS), expected)


def test_a_uniform_affinity_saves_nothing_and_no_grouping_costs():
    z = rows(8, 5)
    uniform = torch.full((8, 8), 1 / 8).double()
    assert_close(rate_reduction(z, uniform, EPS), torch.zeros((), dtype=torch.float64))
    for seed in range(5):
        free = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).double()
        assert float(rate_reduction(z, free.softmax(1), EPS)) > 0


def test_gradients_through_memberships_of_zero_are_finite():
    z, membership = rows(6, 3), torch.eye(6).double().requires_grad_()
    rate_reduction(z, membership, EPS).backward()
    assert bool(torch.isfinite(membership.grad).all())
