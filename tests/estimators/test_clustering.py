"""Subspace clustering on unions of subspaces and of curved sheets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.cluster import KMeans

from spectrim.errors import InputError
from spectrim.estimators import ManifoldClustering, SelfExpressiveClustering
from spectrim.estimators._structured_norm import (
    express_error,
    penalized_expression,
    structured_norm,
    structured_step,
)
from spectrim.estimators.self_expressive_clustering import express_gram, self_expression
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
    model = SelfExpressiveClustering(4, regularization=1e-10, random_state=0).fit(rows)
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


def labeled_gram(count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of two subspaces that meet, and labels of which one in five is wrong."""
    rows, truth = subspaces(2, 3, 5, count // 2)
    labels = torch.from_numpy(truth)
    labels[::5] = 1 - labels[::5]
    return torch.from_numpy(rows @ rows.T), labels


def test_the_structured_norm_is_the_trace_over_the_laplacian():
    gram, labels = labeled_gram()
    coefficients = express_gram(gram, 0.5)
    size = (coefficients.abs() + coefficients.abs().T).sqrt()
    laplacian = torch.diag(size.sum(1)) - size
    one_hot = torch.eye(2, dtype=torch.float64)[labels]
    expected = torch.trace(one_hot.T @ laplacian @ one_hot)
    torch.testing.assert_close(
        structured_norm(coefficients, labels), expected, rtol=FLOAT64_RELATIVE, atol=0
    )
    assert structured_norm(coefficients, torch.zeros(20)) == 0


def test_equal_penalties_are_the_closed_form():
    gram, _ = labeled_gram()
    torch.testing.assert_close(
        penalized_expression(gram, torch.full_like(gram, 0.5)),
        express_gram(gram, 0.5),
        rtol=FLOAT64_RELATIVE,
        atol=ROUNDING_ABSOLUTE,
    )


def test_the_objective_falls_and_so_does_what_joins_different_labels():
    gram, labels = labeled_gram()
    apart = labels[:, None] != labels
    coefficients, values = express_gram(gram, 0.5), []
    before = coefficients.abs()[apart].sum() / coefficients.abs().sum()
    for _ in range(8):
        value = express_error(gram, coefficients, 0.5)
        values.append(float(value + 0.3 * structured_norm(coefficients, labels)))
        coefficients = structured_step(gram, coefficients, labels, 0.5, 0.3)
        assert not coefficients.diagonal().any()
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(values))
    assert values[-1] < 0.95 * values[0]
    assert coefficients.abs()[apart].sum() / coefficients.abs().sum() < 0.5 * before


@pytest.mark.parametrize("layers", [(), (8,)])
def test_the_last_stage_takes_clusters_apart(layers):
    rows, truth = subspaces(3, 3, 7, 20)
    options = {"layers": layers, "epochs": 20, "random_state": 0}
    plain = SelfExpressiveClustering(3, **options).fit(rows)
    model = SelfExpressiveClustering(3, structure=0.3, **options).fit(rows)

    def leak(found: SelfExpressiveClustering) -> float:
        across = found.labels_[:, None] != found.labels_
        return float(found.affinity_matrix_[across].sum() / found.affinity_matrix_.sum())

    assert leak(model) < 0.7 * leak(plain)
    assert agreement(model.labels_, truth) >= agreement(plain.labels_, truth)
    assert len(model.history_) > 1
    assert model.history_[-1] <= model.history_[0]


def test_refusals():
    with pytest.raises(InputError, match="one of at least 0"):
        SelfExpressiveClustering(structure=-1).fit(np.eye(9))
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


@pytest.mark.slow
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
