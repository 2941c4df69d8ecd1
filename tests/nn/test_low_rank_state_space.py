"""The low-rank state map: equal to the dense recurrence at full rank, and its distillation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.nn.low_rank_state_space import (
    LowRankStateSpace,
    scan,
    structure_losses,
    unscan,
)
from tests.tolerances import FLOAT64_RELATIVE


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def module(state: int, rank: int | None = None, scans: int = 1) -> LowRankStateSpace:
    torch.manual_seed(0)
    return LowRankStateSpace(5, state, rank, scans).double()


def test_full_rank_is_the_dense_recurrence():
    found, x = module(8), drawn(2, 50, 5)
    a, b, c = found.maps()[0], found.inputs[0], found.outputs[0]
    state, outputs = torch.zeros(2, 8, dtype=torch.float64), []
    for step in x.unbind(1):
        state = state @ a.T + step @ b.T
        outputs.append(state @ c.T + found.skip * step)
    expected = torch.stack(outputs, 1)
    assert (found(x) - expected).norm() < FLOAT64_RELATIVE * expected.norm()
    assert (found.truncated(8)(x) - expected).norm() < FLOAT64_RELATIVE * expected.norm()


@pytest.mark.parametrize("rank", [1, 3])
def test_a_truncated_map_is_the_svds(rank):
    found = module(8)
    u, s, v = torch.linalg.svd(found.maps()[0])
    student = found.truncated(rank)
    expected = u[:, :rank] * s[:rank] @ v[:rank]
    assert (student.maps()[0] - expected).norm() < FLOAT64_RELATIVE
    assert (student.left.norm() - student.right.norm()).abs() < FLOAT64_RELATIVE
    assert student.left.numel() + student.right.numel() == 2 * 8 * rank


def test_four_scans_go_every_way_and_back():
    x = drawn(2, 3, 4, 5)
    ways = scan(x, 4)
    assert torch.equal(ways[:, 0, 1], x[:, 0, 1])
    assert torch.equal(ways[:, 1, 1], x[:, 1, 0])
    assert torch.equal(ways[:, 2, 0], x[:, 2, 3])
    assert torch.equal(ways[:, 3, 0], x[:, 2, 3])
    assert (unscan(ways, x) - 4 * x).norm() < FLOAT64_RELATIVE


def test_every_position_sees_all_others():
    found, x = module(6, 3, 4), drawn(1, 3, 3, 5).requires_grad_()
    found(x)[0, 1, 1].sum().backward()
    assert bool((x.grad.abs().sum(-1) > 0).all())


@pytest.mark.parametrize("gauge_free", [True, False])
def test_losses_are_zero_for_equals_and_reach_the_factors(gauge_free):
    teacher, x = module(6), drawn(2, 7, 5)
    equal = structure_losses(teacher.truncated(6), teacher, x, gauge_free)
    assert all(float(loss) < 1e-18 for loss in equal.values())
    student = teacher.truncated(2)
    with torch.no_grad():
        student.left += 0.1
    sum(structure_losses(student, teacher, x, gauge_free).values()).backward()
    assert bool(student.left.grad.any())
    assert bool(student.right.grad.any())


def test_the_map_is_compared_whatever_its_factors_are():
    teacher, x = module(6), drawn(2, 7, 5)
    student = teacher.truncated(3)
    turned = copy.deepcopy(student)
    mixing = drawn(3, 3, seed=3) + 3 * torch.eye(3)
    with torch.no_grad():
        turned.left.copy_(student.left @ mixing)
        turned.right.copy_(student.right @ torch.linalg.inv(mixing).T)
    free = structure_losses(turned, teacher, x)["map"]
    published = structure_losses(turned, teacher, x, gauge_free=False)["map"]
    assert float(free) < 1e-18
    assert float(published) > 0.1


@pytest.mark.slow
def test_distillation_recovers_most_of_what_the_cut_lost():
    """A teacher that remembers; a student of a quarter of its rank, with and without it."""
    teacher, x = module(16), drawn(32, 12, 5)
    with torch.no_grad():
        teacher.left.mul_(torch.logspace(0, -1.2, 16, dtype=torch.float64))
        wanted = teacher(x)
    student = teacher.truncated(4)

    def away() -> float:
        with torch.no_grad():
            return float((student(x) - wanted).square().mean())

    before = away()
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(structure_losses(student, teacher, x).values()).backward()
        optimizer.step()
    assert away() < 0.5 * before


def test_wrong_sizes_are_named():
    for given in ({"rank": 9}, {"scans": 2}, {"radius": 1.0}):
        with pytest.raises(InputError, match="expected"):
            LowRankStateSpace(5, 8, **given)
