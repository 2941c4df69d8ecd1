from __future__ import annotations

import torch

from spectrim.linalg.sinkhorn import symmetric_sinkhorn
from tests.tolerances import ROUNDING_ABSOLUTE


def affinity(size: int) -> torch.Tensor:
    free = torch.randn(size, 4, generator=torch.Generator().manual_seed(0)).double()
    unit = torch.nn.functional.normalize(free, dim=1)
    return unit @ unit.T


def test_rows_and_columns_sum_to_one():
    found = symmetric_sinkhorn(affinity(12), entropy=0.2)
    assert bool((found > 0).all())
    assert torch.allclose(found.sum(0), torch.ones(12).double(), atol=ROUNDING_ABSOLUTE, rtol=0)
    assert torch.allclose(found, found.T, atol=ROUNDING_ABSOLUTE, rtol=0)


def test_scaling_preserves_the_ratios_of_the_kernel():
    kernel = affinity(6) / 0.3
    found = symmetric_sinkhorn(affinity(6), entropy=0.3).log()
    cross = lambda m: m[0, 1] + m[2, 3] - m[0, 3] - m[2, 1]  # noqa: E731
    assert torch.allclose(cross(found), cross(kernel))


def test_entropy_moves_it_between_uniform_and_permutation():
    flat = symmetric_sinkhorn(affinity(5), entropy=1e6)
    assert torch.allclose(flat, torch.full((5, 5), 0.2).double(), atol=1e-5)
    sharp = symmetric_sinkhorn(affinity(5), entropy=1e-3)
    assert torch.allclose(sharp, torch.eye(5).double(), atol=1e-3)


def test_forbidden_pairs_stay_zero():
    masked = affinity(5).masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf)
    found = symmetric_sinkhorn(masked, entropy=1.0)
    assert not found.diagonal().any()
    assert torch.allclose(found.sum(0), torch.ones(5).double(), atol=1e-6)
