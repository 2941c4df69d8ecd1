"""Limits of the trade-off against SVD and logistic regression; the planted gain."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

pytest.importorskip("sklearn")

from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from spectrim.errors import InputError
from spectrim.estimators import SupervisedDictionary
from spectrim.estimators._lift import Lift, with_ones

VARIANTS = ("filter", "feature")


def planted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six factors in thirty columns; the labels depend on the two weakest and a covariate."""
    random = np.random.default_rng(seed)
    loadings = np.linalg.qr(np.random.default_rng(99).normal(size=(30, 6)))[0]
    factors = random.normal(size=(count, 6))
    rows = factors * [3, 2.5, 2, 1.5, 0.8, 0.8] @ loadings.T
    rows += 0.1 * random.normal(size=(count, 30))
    beside = random.normal(size=(count, 1))
    score = 2 * (factors[:, 4] - factors[:, 5]) + beside[:, 0]
    labels = (score + random.logistic(size=count) > 0).astype(int)
    return rows, labels, beside


@pytest.mark.parametrize("variant", VARIANTS)
def test_reconstruction_alone_is_the_truncated_svd(variant):
    rows, labels, _ = planted(80, 0)
    model = SupervisedDictionary(4, variant=variant, tradeoff=1e6).fit(rows, labels)
    u, s, vh = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(
        model.reconstruct(rows), u[:, :4] * s[:4] @ vh[:4], rtol=0, atol=1e-3
    )


def test_without_reconstruction_it_is_logistic_regression():
    rows, labels, _ = planted(300, 0)
    model = SupervisedDictionary(4, tradeoff=0.0, max_iter=5000, tol=1e-12)
    expected = LogisticRegression(C=np.inf, max_iter=5000, tol=1e-8).fit(rows, labels)
    found = model.fit(rows, labels).predict_proba(rows)
    np.testing.assert_allclose(found, expected.predict_proba(rows), atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_never_rises(variant, classes):
    rows, labels, beside = planted(120, 0)
    labels = labels + (rows[:, 0] > 2) * (classes - 2)
    model = SupervisedDictionary(3, variant=variant, tradeoff=0.3, max_iter=200)
    history = model.fit(rows, labels, covariates=beside).history_
    assert len(history) > 3
    assert all(b <= a for a, b in pairwise(history))
    assert model.components_.shape == (3, 30)
    assert model.predict_proba(rows, beside).shape == (120, len(model.classes_))


@pytest.mark.parametrize("filters", [True, False])
def test_every_step_has_the_rank_and_the_objective_is_that_of_the_lifted_matrices(filters):
    rows, labels, beside = planted(60, 0)
    data, target = torch.from_numpy(rows), torch.from_numpy(labels).double()[:, None]
    lift = Lift(data, target, with_ones(beside, 60), 3, 0.3, 0.1, filters)
    a = torch.zeros(30 if filters else 60, 1).double()
    b = torch.zeros(2, 1).double()
    for _ in range(5):
        a, b, basis = lift.advance(a, b)
        part = (data if filters else data.T) @ basis @ basis.T  # the reconstruction
        lifted = torch.cat([a, part.T], dim=1)
        assert torch.linalg.matrix_rank(lifted, rtol=1e-9) == 3
        chosen = lift.probabilities(a, b)
        loss = functional.binary_cross_entropy(chosen, target, reduction="sum")
        error = ((data if filters else data.T) - part).square().sum()
        expected = loss + 0.05 * a.square().sum() + 0.3 * error
        assert lift.objective(a, b, basis) == pytest.approx(float(expected))


def test_it_finds_weak_directions_that_tell_the_classes_apart():
    rows, labels, beside = planted(300, 0)
    new, truth, new_beside = planted(2000, 1)
    model = SupervisedDictionary(4, tradeoff=0.02).fit(rows, labels, covariates=beside)
    found = (model.predict(new, covariates=new_beside) == truth).mean()
    pca = PCA(4).fit(rows)
    unsupervised = LogisticRegression().fit(np.c_[pca.transform(rows), beside], labels)
    assert found > unsupervised.score(np.c_[pca.transform(new), new_beside], truth) + 0.1
    with pytest.raises(InputError, match="0 covariates; fitted with 1"):
        model.predict(new)
    error = np.linalg.norm(new - model.reconstruct(new)) / np.linalg.norm(new)
    assert error < 0.6


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="expected 'filter' or 'feature'"):
        SupervisedDictionary(variant="both").fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(InputError, match=r"covariates \(3, 1\) of 4 rows"):
        SupervisedDictionary().fit(np.eye(4), [0, 1, 0, 1], covariates=np.ones((3, 1)))
    with pytest.raises(InputError, match="expected at least 1, 0 and 0"):
        SupervisedDictionary(0).fit(np.eye(4), [0, 1, 0, 1])
