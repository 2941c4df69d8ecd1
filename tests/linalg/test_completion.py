"""Completion of generated low-rank matrices, and what it must refuse."""

from __future__ import annotations

import pytest
import torch

from spectrim.errors import InputError
from spectrim.linalg.completion import CompletionOptions, complete, solve_rows
from spectrim.linalg.measurements import Dense, Entries, RankOne
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE

RANK = 3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def low_rank(m: int = 60, n: int = 40) -> torch.Tensor:
    return normal(m, RANK, seed=1) @ normal(RANK, n, seed=2)


def observed(matrix: torch.Tensor, oversampling: float, seed: int = 0) -> Entries:
    m, n = matrix.shape
    count = int(oversampling * RANK * (m + n - RANK))
    order = torch.randperm(m * n, generator=torch.Generator().manual_seed(seed))[:count]
    return Entries(order // n, order % n, (m, n))


def values_of(matrix: torch.Tensor, entries: Entries) -> torch.Tensor:
    return matrix[entries.rows, entries.columns]


def error(found, matrix: torch.Tensor) -> float:
    return float((found.left @ found.right.T - matrix).norm() / matrix.norm())


@pytest.mark.parametrize("inner_steps", [2, RANK])
def test_exact_low_rank_is_recovered(inner_steps):
    matrix = low_rank()
    entries = observed(matrix, 4)
    options = CompletionOptions(inner_steps=inner_steps)
    found = complete(entries, values_of(matrix, entries), RANK, options)
    assert found.converged
    assert error(found, matrix) < FLOAT64_RELATIVE
    assert all(b <= a + 1e-14 for a, b in zip(found.history, found.history[1:], strict=False))


def test_full_observation_is_the_truncated_svd():
    matrix = low_rank() + 0.1 * normal(60, 40)
    entries = Entries.all_of((60, 40))
    found = complete(entries, matrix.flatten(), RANK)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    assert error(found, best) < 1e-6


def test_the_order_of_rows_and_columns_does_not_matter():
    matrix = low_rank()
    entries = observed(matrix, 4)
    turned = Entries(entries.columns, 59 - entries.rows, (40, 60))
    found = complete(turned, values_of(matrix, entries), RANK)
    assert error(found, matrix.flip(0).T) < FLOAT64_RELATIVE


def test_the_product_does_not_depend_on_the_basis_of_a_factor():
    matrix, basis, turn = low_rank(), normal(40, RANK, seed=5), normal(RANK, RANK, seed=6)
    entries, start = observed(matrix, 4), torch.zeros(60, RANK).double()
    exact = CompletionOptions(inner_steps=4 * RANK)
    values = values_of(matrix, entries)
    found = [
        solve_rows(entries, values, right, start, exact) @ right.T
        for right in (basis, basis @ turn)
    ]
    torch.testing.assert_close(*found, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE)


def test_undetermined_rows_and_impossible_ranks_are_refused():
    entries = Entries(torch.tensor([0, 2, 2]), torch.tensor([0, 1, 0]), (3, 2))
    with pytest.raises(InputError, match="row 1 of the 3 x 2 matrix has no observed entry"):
        complete(entries, torch.ones(3), 1)
    with pytest.raises(InputError, match="expected 1 to 2"):
        complete(entries, torch.ones(3), 3)


@pytest.mark.parametrize(
    "operator",
    [
        observed(low_rank(6, 5), 0.5),
        RankOne(normal(9, 5)),
        Dense(normal(9, 6, 5)),
        Dense(normal(9, 5, 5), symmetric=True),
    ],
    ids=["entries", "rank one", "dense", "symmetric"],
)
def test_the_adjoint_is_one(operator):
    p, q = operator.shape
    left = normal(p, 2)
    right = left if operator.symmetric else normal(q, 2, seed=1)
    measured = operator.forward(left, right)
    values = normal(len(measured), seed=2)
    inside = (operator.adjoint(values) * (left @ right.T)).sum()
    assert float(inside) == pytest.approx(float(measured @ values), abs=ROUNDING_ABSOLUTE)
