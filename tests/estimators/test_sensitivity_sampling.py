"""Exact sensitivities against their definition; samples against uniform ones."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from spectrim.errors import InputError
from spectrim.estimators import SensitivitySampler, sensitivities


def rows(count: int = 30, width: int = 3, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) * random.uniform(0.1, 2, size=(count, 1))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0])
def test_no_direction_exceeds_the_sensitivity_and_some_reaches_it(p):
    a = rows()
    found = sensitivities(a, p)
    directions = np.random.default_rng(1).normal(size=(40_000, 3))
    values = np.abs(directions @ a.T) ** p
    reached = (values / values.sum(1, keepdims=True)).max(0)
    assert (reached <= found * (1 + 1e-6)).all()
    assert (reached > found * 0.97).all()
    assert found.sum() <= 3 ** max(1, p / 2) * (1 + 1e-9)


def test_sensitivities_of_squares_are_leverage():
    a = rows(20)
    leverage = np.diag(a @ np.linalg.pinv(a))
    np.testing.assert_allclose(sensitivities(a, 2.0), leverage, rtol=1e-9)
    assert sensitivities(a, 2.0).sum() == pytest.approx(3)


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_sensitivities_do_not_depend_on_the_coordinates(p):
    a, change = rows(12), rows(3, 3, seed=2) + 3 * np.eye(3)
    np.testing.assert_allclose(sensitivities(a @ change, p), sensitivities(a, p), rtol=1e-5)
    assert sensitivities(np.vstack([a, np.zeros(3)]), p)[-1] == 0


@pytest.mark.parametrize(
    ("method", "p"), [("leverage", 2.0), ("lewis", 1.0), ("root_leverage", 1.0)]
)
def test_rare_directions_are_kept_that_uniform_samples_miss(method, p):
    random = np.random.default_rng(0)
    a = np.c_[random.normal(size=(4000, 5)), np.zeros(4000)]
    a[:4, 5] = 3
    directions = np.eye(6)
    truth = (np.abs(a @ directions) ** p).sum(0)

    def worst(name: str, seed: int) -> float:
        model = SensitivitySampler(300, p=p, method=name, random_state=seed)
        kept, weights = model.fit_sample(a)
        found = (weights[:, None] * np.abs(kept @ directions) ** p).sum(0)
        return float(np.abs(found / truth - 1).max())

    assert np.median([worst(method, seed) for seed in range(9)]) < 0.3
    assert np.median([worst("uniform", seed) for seed in range(9)]) > 0.8


def test_refusals():
    with pytest.raises(InputError, match="they serve p < 2"):
        SensitivitySampler(method="root_leverage").fit(rows())
    with pytest.raises(InputError, match="expected one of leverage"):
        SensitivitySampler(method="norm").fit(rows())
    with pytest.raises(InputError, match="expected p >= 1"):
        sensitivities(rows(), 0.5)
