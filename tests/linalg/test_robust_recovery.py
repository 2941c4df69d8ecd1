"""Recovery under gross outliers where least squares fails."""

from __future__ import annotations

import pytest
import torch

from spectrim.errors import InputError
from spectrim.linalg.measurements import Dense, Entries, RankOne
from spectrim.linalg.robust_recovery import SubgradientOptions, robust_recover
from tests.tolerances import RECOVERY_RELATIVE

SIZE, RANK, COUNT = 12, 2, 300


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def planted(share: float, operator) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of norm one, and measurements of which a share is wrong by ten."""
    p, q = operator.shape
    left = normal(p, RANK, seed=3)
    right = left if operator.symmetric else normal(q, RANK, seed=4)
    left, right = (f / torch.linalg.matrix_norm(left @ right.T).sqrt() for f in (left, right))
    y = operator.forward(left, right)
    wrong = torch.randperm(len(y), generator=torch.Generator().manual_seed(5))
    wrong = wrong[: int(share * len(y))]
    y[wrong] += 10 * normal(len(wrong), seed=6)
    return left @ right.T, y


def error(found, matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(found.matrix - matrix) / matrix.norm())


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(
    "operator",
    [
        Dense(normal(COUNT, SIZE, SIZE), symmetric=True),
        Entries.all_of((100, 40)),
        RankOne(normal(COUNT, SIZE)),
    ],
    ids=["dense", "entries", "rank one"],
)
def test_outliers_do_not_move_the_result(operator, share):
    matrix, y = planted(share, operator)
    found = robust_recover(operator, y, RANK)
    assert error(found, matrix) < RECOVERY_RELATIVE
    assert found.history[-1] < found.history[0]


def test_least_squares_fails_on_the_same_outliers():
    """All entries are observed, so that the best fit in squares is the truncated SVD."""
    operator = Entries.all_of((100, 40))
    matrix, y = planted(0.3, operator)
    u, s, vh = torch.linalg.svd(y.reshape(100, 40), full_matrices=False)
    squares = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    assert float((squares - matrix).norm() / matrix.norm()) > 1
    assert error(robust_recover(operator, y, RANK), matrix) < RECOVERY_RELATIVE


def test_surplus_rank_costs_little_and_a_smaller_start_less():
    operator = Dense(normal(COUNT, SIZE, SIZE), symmetric=True)
    matrix, y = planted(0.1, operator)
    errors = [
        error(robust_recover(operator, y, SIZE, SubgradientOptions(init_scale=s)), matrix)
        for s in (1e-1, 1e-4)
    ]
    assert errors[1] < RECOVERY_RELATIVE < errors[0]


def test_the_result_follows_the_scale_of_the_measurements():
    operator = Dense(normal(COUNT, SIZE, SIZE), symmetric=True)
    _, y = planted(0.2, operator)
    once, scaled = (robust_recover(operator, c * y, 4).matrix for c in (1.0, 64.0))
    torch.testing.assert_close(scaled, 64 * once, rtol=1e-6, atol=1e-9)


def test_it_is_symmetric_in_the_sign_and_deterministic():
    operator = Entries.all_of((30, 20))
    _, y = planted(0.1, operator)
    few = SubgradientOptions(steps=50)
    once, again, minus = (robust_recover(operator, c * y, 4, few).matrix for c in (1, 1, -1))
    assert torch.equal(once, again)
    torch.testing.assert_close(minus, -once, rtol=1e-6, atol=1e-9)


def test_an_impossible_rank_is_refused():
    with pytest.raises(InputError, match="expected 1 to 12"):
        robust_recover(RankOne(normal(9, SIZE)), torch.ones(9), 13)
