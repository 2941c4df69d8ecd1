"""Groups of matrices by affinity and by coding rate, on planted row spaces."""

from __future__ import annotations

import pytest
import torch

from spectrim.linalg.basis_grouping import affinity_distance, agglomerate, coding_distance
from tests.tolerances import FLOAT64_RELATIVE

WIDTH, RANK = 24, 4


@pytest.fixture
def planted() -> list[torch.Tensor]:
    """Six matrices on three row spaces: 0 and 3, 1 and 4, 2 and 5, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(  # noqa: E731
        *shape, generator=generator, dtype=torch.float64
    )
    spaces = torch.linalg.qr(normal(WIDTH, 3 * RANK)).Q.T.split(RANK)
    return [normal(10, RANK) @ spaces[i % 3] + 0.01 * normal(10, WIDTH) for i in range(6)]


def distance_for(rule: str, matrices: list[torch.Tensor]):
    if rule == "affinity":
        return affinity_distance(matrices, RANK)
    return coding_distance(matrices)


@pytest.mark.parametrize("rule", ["affinity", "coding_rate"])
def test_planted_groups_are_found(planted, rule):
    distance = distance_for(rule, planted)
    found = agglomerate(6, distance, lambda group: True, 2)
    assert found == [(0, 3), (1, 4), (2, 5)]
    assert distance((0,), (3,)) < 0.2 * distance((0,), (1,))


@pytest.mark.parametrize("rule", ["affinity", "coding_rate"])
def test_what_is_not_allowed_stays_apart(planted, rule):
    distance = distance_for(rule, planted)
    found = agglomerate(6, distance, lambda group: group != (1, 4), 2)
    assert (0, 3) in found
    assert (1, 4) not in found
    assert sorted(i for group in found for i in group) == list(range(6))
    assert agglomerate(6, distance, lambda group: False, 6) == [(i,) for i in range(6)]


@pytest.mark.parametrize("rule", ["affinity", "coding_rate"])
def test_distances_do_not_depend_on_scale_or_on_the_basis_of_rows(planted, rule):
    rotation = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    changed = [3.0 * rotation @ matrix for matrix in planted]
    one, other = distance_for(rule, planted), distance_for(rule, changed)
    for pair in (((0,), (1,)), ((0, 3), (2,))):
        assert other(*pair) == pytest.approx(one(*pair), rel=FLOAT64_RELATIVE, abs=1e-9)


def test_groups_grow_to_the_most():
    distance = lambda a, b: abs(sum(a) / len(a) - sum(b) / len(b))  # noqa: E731
    assert agglomerate(4, distance, lambda group: True, 4) == [(0, 1, 2, 3)]
    assert max(map(len, agglomerate(7, distance, lambda group: True, 3))) == 3
