"""Subspace clustering on unions of subspaces and of curved sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.cluster import KMeans

from spectrim.errors import InputError
from spectrim.estimators import ManifoldClustering, SelfExpressiveClustering
from spectrim.estimators.self_expressive_clustering import self_expression
from tests.estimators.data import agreement, subspaces
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE


def test_self_expression_is_a_ridge_regression_of_each_row_on_the_others():
    rows = torch.from_numpy(subspaces(2, 2, 5, 6)[0])
    found = self_expression(rows, 0.3)
    assert not found.diagonal().any()
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        gram = rows[others] @ rows[others].T + 0.3 * torch.eye(len(others)).double()
        expected = torch.linalg.solve(gram, rows[others] @ rows[i])
        torch.testing.assert_close(
            found[i, others], expected, rtol=FLOAT64_RELATIVE, atol=1e-12
        )


def test_independent_subspaces_do_not_express_each_other():
    rows, truth = subspaces(4, 3, 20, 25)
    model = SelfExpressiveClustering(4, regularization=1e-8, random_state=0).fit(rows)
    across = model.affinity_matrix_[truth[:, None] != truth]
    assert across.max() < 1e-5 * model.affinity_matrix_.max()
    assert agreement(model.labels_, truth) == 1
    kmeans = KMeans(4, n_init=5, random_state=0).fit_predict(rows)
    assert agreement(kmeans, truth) < 0.7


def test_the_order_of_the_rows_does_not_matter_and_dim_entries_are_kept():
    rows, truth = subspaces(3, 2, 9, 15)
    order = np.random.default_rng(0).permutation(45)
    plain = SelfExpressiveClustering(3, dim=2, random_state=0).fit(rows)
    turned = SelfExpressiveClustering(3, dim=2, random_state=0).fit(rows[order])
    np.testing.assert_allclose(
        turned.affinity_matrix_,
        plain.affinity_matrix_[np.ix_(order, order)],
        atol=ROUNDING_ABSOLUTE,
    )
    assert ((plain.coefficients_ != 0).sum(1) == 2).all()
    assert agreement(turned.labels_, truth[order]) == 1


def test_an_encoder_keeps_what_the_closed_form_has():
    rows, truth = subspaces(3, 2, 12, 20)
    model = SelfExpressiveClustering(3, layers=(8,), epochs=20, random_state=0).fit(rows)
    assert agreement(model.labels_, truth) == 1


def test_refusals():
    with pytest.raises(InputError, match="expected a positive number"):
        SelfExpressiveClustering(regularization=0).fit(np.eye(9))
    with pytest.raises(InputError, match="10 clusters of 9 rows"):
        SelfExpressiveClustering(10).fit(np.eye(9))


def sheets(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Three curved two-dimensional sheets in ten dimensions."""
    random = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        u = random.uniform(-1, 1, size=(rows, 2))
        lifted = np.c_[u, u**2, np.sin(2 * u), np.ones(rows)]
        parts.append(lifted @ random.normal(size=(7, 10)) + 1.5 * random.normal(size=10))
    return np.concatenate(parts), np.repeat(np.arange(3), rows)


def energy_rank(rows: np.ndarray) -> int:
    energy = np.linalg.svd(rows, compute_uv=False) ** 2
    return int((np.cumsum(energy) < 0.95 * energy.sum()).sum()) + 1


def test_manifolds_are_clustered_and_made_linear():
    rows, truth = sheets(60)
    model = ManifoldClustering(3, n_components=12, warmup=60, epochs=60, random_state=0)
    found = model.fit(rows)
    assert agreement(found.labels_, truth) > 0.9
    affinity = found.affinity_matrix_
    np.testing.assert_allclose(affinity.sum(0), 1, atol=1e-4)
    features = found.transform(rows)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    ranks = [energy_rank(features[truth == k]) for k in range(3)]
    assert max(ranks) < energy_rank(features)
