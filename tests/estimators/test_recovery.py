"""Imputation and robust low rank on planted matrices."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.impute import KNNImputer

from spectrim.errors import InputError
from spectrim.estimators import LowRankImputer, RobustLowRank
from tests.tolerances import RECOVERY_RELATIVE


def low_rank(rows: int = 60, columns: int = 30, rank: int = 2, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    loadings = np.random.default_rng(7).normal(size=(rank, columns))
    return random.normal(size=(rows, rank)) @ loadings


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def test_missing_entries_of_low_rank_are_filled_in():
    truth = low_rank()
    holes = np.random.default_rng(1).random(truth.shape) < 0.5
    given = np.where(holes, np.nan, truth)
    model = LowRankImputer(2, ridge=1e-12)
    filled = model.fit_transform(given)
    assert relative(filled, truth) < 1e-6
    assert (filled[~holes] == truth[~holes]).all()
    assert relative(KNNImputer().fit_transform(given), truth) > 0.1
    new = low_rank(20, seed=2)
    assert relative(model.transform(np.where(holes[:20], np.nan, new)), new) < 1e-6


def test_rows_that_nothing_determines_are_refused():
    given = low_rank(9, 5)
    model = LowRankImputer().fit(given)
    given[3] = np.nan
    with pytest.raises(InputError, match=r"row 3 .* has no observed entry"):
        model.transform(given)
    with pytest.raises(InputError, match=r"row 3 .* has no observed entry"):
        model.fit(given)


@pytest.mark.parametrize("rank", [2, 5])
def test_gross_errors_do_not_move_the_low_rank_part(rank):
    truth, random = low_rank(100, 40), np.random.default_rng(1)
    wrong = random.random(truth.shape) < 0.2
    given = truth + np.where(wrong, 50 * random.normal(size=truth.shape), 0)
    model = RobustLowRank(rank)
    found = model.inverse_transform(model.fit_transform(given))
    assert relative(found, truth) < 10 * RECOVERY_RELATIVE
    u, s, vh = np.linalg.svd(given, full_matrices=False)
    assert relative(u[:, :2] * s[:2] @ vh[:2], truth) > 1
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(2), atol=1e-8)


def test_new_rows_are_coded_under_errors():
    model = RobustLowRank(2).fit(low_rank(100, 40))
    new = low_rank(10, 40, seed=5)
    given = new.copy()
    given[:, ::5] += 100
    assert relative(model.inverse_transform(model.transform(given)), new) < RECOVERY_RELATIVE
