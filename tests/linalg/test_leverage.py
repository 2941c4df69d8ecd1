"""Scores of rows against their definitions; samples against their expectation."""

from __future__ import annotations

import pytest
import torch

from spectrim.errors import InputError
from spectrim.linalg.leverage import (
    block_scores,
    keep_probabilities,
    leverage_scores,
    lewis_weights,
    sample_rows,
)
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE, SAMPLE_MEAN_RELATIVE


def rows(count: int = 40, width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return free * torch.rand(count, 1, generator=generator).double().pow(3)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=FLOAT64_RELATIVE, atol=ROUNDING_ABSOLUTE)


def test_leverage_is_the_diagonal_of_the_projection_and_sums_to_the_rank():
    a = rows()
    assert_close(leverage_scores(a), (a @ torch.linalg.pinv(a)).diagonal())
    low = a[:, :3] @ rows(3, 5, seed=1)
    assert float(leverage_scores(low).sum()) == pytest.approx(3)
    damped = (a @ torch.linalg.solve(a.T @ a + 2 * torch.eye(5).double(), a.T)).diagonal()
    assert_close(leverage_scores(a, ridge=2.0), damped)


def test_scores_do_not_depend_on_the_coordinates_and_duplicates_share_them():
    a, change = rows(), rows(5, 5, seed=3) + 3 * torch.eye(5).double()
    assert_close(leverage_scores(a @ change), leverage_scores(a))
    assert_close(lewis_weights(a @ change, 1.0), lewis_weights(a, 1.0))
    twice = leverage_scores(torch.cat([a, a]))
    assert_close(twice[:40] + twice[40:], leverage_scores(a))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_lewis_weights_solve_their_equation(p):
    a = torch.cat([rows(), torch.zeros(1, 5).double()])
    weights = lewis_weights(a, p)
    kept = weights[:40]
    inner = (a[:40].T * kept.pow(1 - 2 / p)) @ a[:40]
    forms = torch.einsum("ni,ij,nj->n", a[:40], torch.linalg.inv(inner), a[:40])
    assert_close(kept, forms.pow(p / 2))
    assert float(weights.sum()) == pytest.approx(5)
    assert weights[40] == 0


def test_lewis_weights_need_a_contraction():
    with pytest.raises(InputError, match="expected 0 < p < 4"):
        lewis_weights(rows(), 4.0)


def test_block_scores_are_sums_of_leverage():
    a = rows()
    blocks = a.reshape(8, 5, 5)
    scores = block_scores(blocks.mT @ blocks)
    assert_close(scores, leverage_scores(a).reshape(8, 5).sum(1))


def test_probabilities_spend_the_budget():
    scores = torch.tensor([0.0, 1.0, 2.0, 100.0, 3.0]).double()
    found = keep_probabilities(scores, 2.5)
    assert float(found.sum()) == pytest.approx(2.5)
    assert found[3] == 1
    assert found[2] == pytest.approx(2 * float(found[1]))
    assert keep_probabilities(scores, 9).tolist() == [0, 1, 1, 1, 1]
    with pytest.raises(InputError, match="expected a positive budget"):
        keep_probabilities(scores - 1, 2)


def test_samples_keep_sums_in_expectation():
    a, generator = rows(200), torch.Generator().manual_seed(0)
    scores, x = leverage_scores(a), torch.ones(5).double()
    loss = (a @ x).abs()
    sums = []
    for _ in range(400):
        kept, weights = sample_rows(scores, 40, generator)
        sums.append(float((weights * loss[kept]).sum()))
    mean = sum(sums) / len(sums)
    assert mean == pytest.approx(float(loss.sum()), rel=SAMPLE_MEAN_RELATIVE)
