"""ACES against brute force: full decompositions, and a grid in place of the roots."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.linalg.aces import AcesObjective
from tests.tolerances import FLOAT64_RELATIVE

INTERVALS = [(0.2, 3 / 7), (0.0, 1.0), (-3.0, 3.0), (0.3, 0.3)]


def pair(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target, change = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return target, change - 0.3 * (seed % 3) * target


def share(target: Tensor, change: Tensor, rank: int, beta: float) -> float:
    """By the definition: the tail outside S's top subspaces, over the whole."""
    u, _, v = torch.linalg.svd(target, full_matrices=True)
    mixed = target + beta * change
    tail = u[:, rank:].T @ mixed @ v[rank:].T
    return float(tail.square().sum() / mixed.square().sum())


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)], ids=str)
@pytest.mark.parametrize("rank", [1, 4])
def test_share_is_its_definition(shape, rank):
    target, change = pair(shape, 0)
    found = AcesObjective.of(target, change, rank)
    for beta in (-1.0, 0.0, 0.3, 2.0):
        assert found(beta) == pytest.approx(
            share(target, change, rank, beta), rel=FLOAT64_RELATIVE
        )


@pytest.mark.parametrize("interval", INTERVALS, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_best_is_that_of_a_grid(interval, seed):
    found = AcesObjective.of(*pair((6, 8), seed), 3)
    best = found.best(interval)
    grid = torch.linspace(*interval, 4001, dtype=torch.float64).tolist()
    assert interval[0] <= best <= interval[1]
    assert found(best) <= min(map(found, grid)) * (1 + FLOAT64_RELATIVE)
    assert best == pytest.approx(min(grid, key=found), abs=2 * (grid[1] - grid[0]))


def test_stationary_points_are_flat():
    step = 1e-6
    for seed in range(8):
        found = AcesObjective.of(*pair((6, 8), seed), 2)
        for beta in found.stationary():
            slope = (found(beta + step) - found(beta - step)) / (2 * step)
            assert abs(slope) < 1e-6


def test_no_change_and_no_tail_are_defined():
    target, change = pair((6, 8), 0)
    assert AcesObjective.of(target, 0 * change, 2).best((0.2, 0.4)) == 0.2
    low = target[:, :2] @ target[:2]
    assert 0.2 <= AcesObjective.of(low, change, 4).best((0.2, 0.4)) <= 0.4
