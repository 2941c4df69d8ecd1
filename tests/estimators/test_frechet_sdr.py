"""FCCov against its definition, and directions of planted responses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from spectrim.errors import InputError
from spectrim.estimators import FrechetSDR, fccov
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def distances(y: torch.Tensor) -> torch.Tensor:
    return torch.cdist(y, y)


def test_the_fast_sum_is_the_definition_with_ties_too():
    features, far = normal(14, 3), distances(normal(14, 1, seed=1).round())
    centered = features - features.mean(0)
    expected = torch.zeros(3, 3).double()
    for i in range(14):
        for j in range(14):
            inside = far[i] <= far[i, j]
            c = (centered * inside[:, None]).sum(0) / 14
            expected += torch.outer(c, c) / 14**2
    torch.testing.assert_close(fccov(features, far), expected, rtol=FLOAT64_RELATIVE, atol=0)


def test_monotone_changes_of_the_distance_change_nothing():
    features, far = normal(30, 2), distances(normal(30, 2, seed=1))
    assert torch.equal(fccov(features, far), fccov(features, far.exp() - 1))


def test_a_square_is_seen_through_the_square_alone():
    x = normal(400, 1)
    far = distances(x.square())
    size = lambda f: float(fccov((f - f.mean()) / f.std(), far).trace())  # noqa: E731
    assert size(x.square()) > 10 * size(x)
    assert size(x.square()) > 10 * size(normal(400, 1, seed=9)), "independent of the response"


def circle(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles that depend on one direction, as points of the circle."""
    random = np.random.default_rng(seed)
    direction = np.ones(10) / 10**0.5
    rows = random.normal(size=(count, 10))
    angle = rows @ direction + 0.2 * random.normal(size=count)
    return rows, np.c_[np.cos(angle), np.sin(angle)], direction


def test_the_direction_behind_angles_is_found():
    rows, points, direction = circle(400, 0)
    found = FrechetSDR().fit(rows, points).components_[0]
    assert abs(found @ direction) / np.linalg.norm(found) > 0.98


def test_the_linear_case_is_invariant_to_affine_maps():
    rows, points, _ = circle(150, 0)
    change = np.random.default_rng(1).normal(size=(10, 10)) + 3 * np.eye(10)
    plain = FrechetSDR(2).fit(rows, points)
    turned = FrechetSDR(2).fit(rows @ change + 1, points)
    for a, b in zip(
        plain.transform(rows).T, turned.transform(rows @ change + 1).T, strict=True
    ):
        np.testing.assert_allclose(b * np.sign(a @ b), a, atol=1e-6)
    np.testing.assert_allclose(np.cov(plain.transform(rows).T, ddof=0), np.eye(2), atol=1e-8)
    assert plain.dependence_ == pytest.approx(turned.dependence_, abs=ROUNDING_ABSOLUTE)


def test_the_network_finds_a_curved_index_under_outliers():
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 6))
    index = 2 * np.linalg.norm(rows[:, :2], axis=1) - rows[:, 2]
    y = np.where(random.random(400) < 0.1, 1000 * random.normal(size=400), index)
    learnt = FrechetSDR(estimator="mlp", epochs=30, random_state=0).fit(rows, y)
    ranks = [np.argsort(np.argsort(v)) for v in (learnt.transform(rows)[:, 0], index)]
    assert abs(np.corrcoef(ranks)[0, 1]) > 0.9


def test_distances_may_be_given():
    rows, points, _ = circle(60, 0)
    far = distances(torch.from_numpy(points)).numpy()
    given = FrechetSDR(metric="precomputed").fit(rows, far)
    np.testing.assert_allclose(given.components_, FrechetSDR().fit(rows, points).components_)
    with pytest.raises(InputError, match=r"distances \(60, 2\) for 60 rows"):
        FrechetSDR(metric="precomputed").fit(rows, points)
    with pytest.raises(InputError, match=r"distances \(60, 60\) for 30 rows"):
        fccov(torch.ones(30, 2), torch.from_numpy(far))
    with pytest.raises(
        InputError, match="n_components 0; expected 'linear' or 'mlp', and at least 1"
    ):
        FrechetSDR(0).fit(rows, points)
