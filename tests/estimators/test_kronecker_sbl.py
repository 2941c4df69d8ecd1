"""Posterior and M-steps against dense formulas; the support of planted tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.linear_model import ARDRegression

from spectrim.errors import InputError
from spectrim.estimators import KroneckerSBL
from spectrim.linalg.sparse_bayes import (
    SparseOptions,
    kronecker_posterior,
    m_step,
    outer,
    solve_kronecker_sbl,
)
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def planted(
    measured: int, noise: float
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Two factors with 12 columns and a tensor on a 3 x 3 sub-grid."""
    factors = [normal(measured, 12, seed=s) / measured**0.5 for s in (1, 2)]
    x = torch.zeros(12, 12).double()
    rows, columns = torch.tensor([1, 5, 8]), torch.tensor([0, 4, 9])
    x[rows[:, None], columns] = normal(3, 3, seed=3) + 2
    y = factors[0] @ x @ factors[1].T
    return factors, x, y + noise * normal(*y.shape, seed=4)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=FLOAT64_RELATIVE, atol=ROUNDING_ABSOLUTE)


def test_the_posterior_is_the_dense_one():
    factors, gammas = [normal(4, 5, seed=1), normal(3, 2, seed=2)], [normal(5).square()]
    gammas.append(normal(2, seed=3).square())
    y, noise = normal(4, 3), 0.3
    mean, variance, _ = kronecker_posterior(factors, y, gammas, noise)
    a, g = torch.kron(*factors), torch.kron(*gammas)
    phi = noise * torch.eye(12).double() + (a * g) @ a.T
    gain = (a * g).T @ torch.linalg.inv(phi)
    assert_close(mean.flatten(), gain @ y.flatten())
    assert_close(variance.flatten(), g - (gain * (a * g).T).sum(1))
    one = kronecker_posterior([a], y.flatten(), gammas, noise)
    assert_close(one[0], mean)
    assert_close(one[1], variance)


@pytest.mark.parametrize("update", ["am", "svd"])
def test_kronecker_moments_are_returned(update):
    gammas = [normal(n, seed=n).abs() + 0.5 for n in (4, 3, 2)]
    found = m_step(outer(gammas), [torch.ones(n).double() for n in (4, 3, 2)], update)
    assert_close(outer(found), outer(gammas))


def test_alternation_lowers_the_cost_and_beats_the_svd_at_it():
    second = normal(5, 4).square() + 0.3
    cost = lambda g: float((outer(g).log() + second / outer(g)).sum())  # noqa: E731
    start = [torch.ones(5).double(), torch.ones(4).double()]
    alternated, split = (m_step(second, list(start), u) for u in ("am", "svd"))
    assert cost(alternated) < cost(start)
    assert cost(alternated) <= cost(split)


@pytest.mark.parametrize("update", ["am", "svd"])
def test_one_factor_is_classical_sparse_bayesian_learning(update):
    design, y, noise = normal(15, 8), normal(15, seed=1), 0.3
    options = SparseOptions(noise, update, rounds=7, tolerance=0.0)
    found = solve_kronecker_sbl([design], y, options)
    gamma = torch.ones(8, dtype=torch.float64)
    for step in range(7):
        phi = noise * torch.eye(15).double() + (design * gamma) @ design.T
        gain = (design * gamma).T @ torch.linalg.inv(phi)
        mean = gain @ y
        if step < 6:
            gamma = mean.square() + gamma - (gain * (design * gamma).T).sum(1)
    assert_close(found.mean, mean)
    assert_close(found.gammas[0] * (gamma > 0), found.gammas[0])


@pytest.mark.parametrize("update", ["am", "svd"])
def test_the_support_is_found(update):
    factors, x, y = planted(9, 1e-3)
    found = solve_kronecker_sbl(factors, y, SparseOptions(1e-6, update))
    error = float((found.mean - x).square().sum() / x.square().sum())
    assert error < 1e-4
    support = outer([(g > 0).double() for g in found.gammas]) > 0
    assert torch.equal(support, x != 0)


def test_the_grid_helps_a_regression_with_few_rows():
    random = np.random.default_rng(0)
    _, x, _ = planted(9, 0)
    coefficients = x.flatten().numpy()
    rows = random.normal(size=(60, 144))
    y = rows @ coefficients + 0.1 * random.normal(size=60) + 3
    grid = KroneckerSBL((12, 12)).fit(rows, y)
    plain = ARDRegression().fit(rows, y)
    errors = [np.linalg.norm(m.coef_ - coefficients) for m in (grid, plain)]
    assert errors[0] < 0.5 * errors[1]
    assert grid.intercept_ == pytest.approx(3, abs=0.2)


def test_refusals():
    with pytest.raises(InputError, match=r"grid of shape \(2, 2\) for 5 columns"):
        KroneckerSBL((2, 2)).fit(np.eye(5), np.arange(5.0))
    with pytest.raises(InputError, match="expected the same"):
        solve_kronecker_sbl([normal(3, 4)], normal(2))
    with pytest.raises(InputError, match="expected 'am' or 'svd'"):
        solve_kronecker_sbl([normal(3, 4)], normal(3), SparseOptions(update="em"))
