"""The residual against its identities, and against baselines on digits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from spectrim.errors import InputError
from spectrim.estimators import SubspaceDetector
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE


def rows(count: int = 50, width: int = 8, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) * np.linspace(2, 0.1, width) + 5


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=FLOAT64_RELATIVE, atol=ROUNDING_ABSOLUTE)


def test_rows_in_the_subspace_score_zero_and_energies_add_up():
    detector = SubspaceDetector(3).fit(rows())
    inside = detector.mean_ + rows(6, 3, seed=1) @ detector.components_
    assert_close(detector.score_samples(inside), 0)
    new = rows(9, seed=2)
    energy = (detector.transform(new) ** 2).sum(1)
    assert_close(energy - detector.score_samples(new), ((new - detector.mean_) ** 2).sum(1))


def test_the_mean_training_score_is_the_cut_variance():
    detector = SubspaceDetector(0.8).fit(rows())
    cut = detector.eigenvalues_[len(detector.components_) :].sum()
    assert_close(-detector.score_samples(rows()).mean(), 49 / 50 * cut)


@pytest.mark.parametrize("distance", ["residual", "mahalanobis", "cosine"])
def test_scores_are_invariant_to_rotations_and_translations(distance):
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0]
    detector = SubspaceDetector(4, distance=distance)
    plain = detector.fit(rows()).score_samples(rows(9, seed=2))
    moved = detector.fit(rows() @ turn + 3).score_samples(rows(9, seed=2) @ turn + 3)
    assert_close(moved, plain)


def test_batches_give_the_same_detector():
    whole = SubspaceDetector(0.9, contamination="auto").fit(rows())
    parts = SubspaceDetector(0.9)
    for batch in (rows()[:7], rows()[7:8], rows()[8:]):
        parts.partial_fit(batch)
    assert_close(parts.score_samples(rows()), whole.score_samples(rows()))
    assert parts.offset_ == pytest.approx(whole.offset_)


@pytest.mark.parametrize("distance", ["residual", "mahalanobis"])
def test_the_automatic_limit_keeps_its_share_of_gaussian_rows(distance):
    detector = SubspaceDetector(3, distance=distance, contamination="auto").fit(rows(4000))
    kept = (detector.predict(rows(20_000, seed=1)) == 1).mean()
    assert kept == pytest.approx(0.99, abs=0.005)


def test_it_beats_the_distance_to_the_mean_on_digits():
    data, target = load_digits(return_X_y=True)
    found, distance = [], []
    for digit in range(10):
        normal = data[target == digit]
        detector = SubspaceDetector(0.9).fit(normal[:60])
        left = np.concatenate([normal[60:], data[target != digit]])
        odd = np.r_[np.zeros(len(normal) - 60), np.ones((target != digit).sum())]
        found.append(roc_auc_score(odd, -detector.score_samples(left)))
        distance.append(roc_auc_score(odd, ((left - detector.mean_) ** 2).sum(1)))
    assert np.mean(found) > 0.98
    assert np.mean(found) > np.mean(distance) + 0.02


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="expected one of residual"):
        SubspaceDetector(distance="l1").fit(rows())
    with pytest.raises(InputError, match="expected 'auto' or a share"):
        SubspaceDetector(contamination=2.0).fit(rows())
    with pytest.raises(InputError, match="expected a whole number from 1 to 8"):
        SubspaceDetector(9).fit(rows())
