"""The certified radius against its derivation and against true boundaries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression

from spectrim.errors import InputError
from spectrim.estimators import (
    ABSTAIN,
    DualSmoothing,
    RandomizedSmoothing,
    checkerboard,
    dual_radius,
)
from spectrim.estimators._confidence import clopper_pearson_lower
from tests.tolerances import FLOAT64_RELATIVE


def test_the_radius_is_the_shortest_perturbation_that_changes_the_vote():
    """Half-spaces are the worst case: Phi(u - a) + Phi(v - b) = 1, shortest (a, b)."""
    for left, right in [(0.999, 0.55), (0.8, 0.8), (0.9, 0.3)]:
        u, v = norm.ppf([left, right])
        a = np.linspace(-6, 6, 200_001)
        b = v - norm.ppf(1 - norm.cdf(u - a))
        shortest = np.hypot(a, b).min()
        assert dual_radius(left, right, 1.0) == pytest.approx(shortest, abs=1e-6)
    assert dual_radius(0.999, 0.55, 1.0) == pytest.approx(2.27, abs=0.01)
    assert dual_radius(0.2, 0.6, 1.0) == 0


def test_equal_halves_gain_the_root_of_two_and_a_useless_one_loses_it():
    single = norm.ppf(0.9)
    assert dual_radius(0.9, 0.9, 1.0) == pytest.approx(2**0.5 * single)
    assert dual_radius(0.9, 0.5, 1.0) == pytest.approx(single / 2**0.5)


def test_the_bound_of_a_probability():
    assert clopper_pearson_lower(50, 50, 0.01) == pytest.approx(0.01 ** (1 / 50))
    assert clopper_pearson_lower(0, 50, 0.01) == 0
    draws = np.random.default_rng(0).binomial(200, 0.7, size=20_000)
    assert (clopper_pearson_lower(draws, 200, 0.05) > 0.7).mean() < 0.05


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=200)
    return random.normal(size=(200, 6)) + 1.5 * labels[:, None], labels


@pytest.mark.parametrize("kind", [DualSmoothing, RandomizedSmoothing])
def test_linear_classifiers_are_never_certified_beyond_their_boundary(kind):
    rows, labels = blobs(0)
    model = kind(LogisticRegression(), sigma=0.5, n=2000, random_state=0).fit(rows, labels)
    new, truth = blobs(1)
    chosen, radius = model.certify(new)
    weight, shift = np.zeros(6), 0.0
    scores = []
    for part, linear in zip(model.parts_, model.estimators_, strict=True):
        size = np.linalg.norm(linear.coef_)
        weight, shift = linear.coef_[0] / size, linear.intercept_[0] / size
        scores.append(new[:, part] @ weight + shift)
    distance = np.abs(sum(scores)) / len(scores) ** 0.5
    certain = chosen != ABSTAIN
    assert certain.mean() > 0.7
    assert (radius[certain] <= distance[certain]).mean() > 0.99
    assert (radius[~certain] == 0).all()
    assert (chosen[certain] == truth[certain]).mean() > 0.85
    assert (model.predict(new) == truth).mean() > 0.85
    assert model.certified_radius(new).tolist() == radius.tolist()


@pytest.mark.parametrize(("kind", "halves"), [(RandomizedSmoothing, 1), (DualSmoothing, 2)])
def test_each_bound_may_fail_with_its_share_of_alpha(kind, halves):
    """Where every draw agrees, the bound of a part is (alpha / parts)^(1 / n)."""
    rows = np.r_[np.full((20, 2), -100.0), np.full((20, 2), 100.0)]
    model = kind(sigma=0.5, n=300, alpha=0.01, random_state=0).fit(rows, np.repeat([0, 1], 20))
    bound = norm.ppf((0.01 / halves) ** (1 / 300))
    certain = 0.5 * bound * halves**0.5
    np.testing.assert_allclose(model.certified_radius(rows), certain, rtol=FLOAT64_RELATIVE)


def test_chance_abstains():
    rows = np.random.default_rng(0).normal(size=(300, 4))
    model = DualSmoothing(sigma=5.0, n=200, random_state=0).fit(rows, np.arange(300) % 2)
    chosen, radius = model.certify(rows)
    assert (chosen == ABSTAIN).mean() > 0.9
    assert radius.mean() < 0.05


def test_halves_are_those_of_the_board():
    board = checkerboard(4, 4).reshape(4, 4)
    assert (board[:2, :2] == np.eye(2, dtype=bool)).all()
    assert checkerboard(3, 5, 2).sum() == 16
    rows, labels = blobs(0)
    with pytest.raises(InputError, match="both halves need some"):
        DualSmoothing(split=np.ones(6, dtype=bool)).fit(rows, labels)
    with pytest.raises(InputError, match="expected a positive number"):
        DualSmoothing(sigma=0).fit(rows, labels)
    with pytest.raises(InputError, match="expected alpha between 0 and 1"):
        DualSmoothing(alpha=2).fit(rows, labels)
