"""Subspaces against their definitions and against pymanopt's manifold."""

from __future__ import annotations

import pytest
import torch

from spectrim.errors import InputError
from spectrim.linalg.grassmann import (
    basis_affinity,
    geodesic_step,
    grassmann_distance,
    horizontal,
    orthonormalize,
    principal_angles,
    principal_subspace,
    projection_residual,
)
from tests.tolerances import FLOAT64_RELATIVE, ROUNDING_ABSOLUTE


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def basis(d: int, k: int, seed: int = 0) -> torch.Tensor:
    return orthonormalize(normal(d, k, seed=seed))


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=FLOAT64_RELATIVE, atol=ROUNDING_ABSOLUTE)


def test_a_share_of_the_variance_takes_the_fewest_directions():
    rotation = basis(5, 5)
    values = torch.tensor([6.0, 3.0, 0.5, 0.4, 0.1]).double()
    covariance = (rotation * values) @ rotation.T
    found, spectrum = principal_subspace(covariance, 0.899)
    assert_close(spectrum, values)
    assert found.shape == (5, 2)
    assert principal_subspace(covariance, 0.901)[0].shape == (5, 3)
    assert_close(found @ found.T, rotation[:, :2] @ rotation[:, :2].T)


@pytest.mark.parametrize("size", [0, 6, 0.0, 1.0, -0.5, "all"])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(InputError, match="expected a whole number from 1 to 5"):
        principal_subspace(torch.eye(5).double(), size)


def test_the_residual_and_the_energy_inside_add_up():
    rows, mean, inside = normal(9, 6), normal(6, seed=1), basis(6, 2, seed=2)
    energy = ((rows - mean) @ inside).square().sum(1)
    total = (rows - mean).square().sum(1)
    assert_close(projection_residual(rows, inside, mean) + energy, total)
    assert_close(projection_residual(normal(4, 2) @ inside.T, inside), torch.zeros(4).double())


def test_orthonormal_bases_are_unique():
    matrix = normal(3, 6, 2)
    q = orthonormalize(matrix)
    assert_close(q.mT @ q, torch.eye(2).double().expand(3, 2, 2))
    assert bool(((q.mT @ matrix).diagonal(dim1=1, dim2=2) > 0).all())


def test_angles_small_and_large_are_exact():
    first = torch.eye(4, 2).double()
    angles = torch.tensor([1e-9, 1.5]).double()
    second = torch.zeros(4, 2).double()
    second[[0, 1], [0, 1]] = angles.cos()
    second[[2, 3], [0, 1]] = angles.sin()
    assert_close(principal_angles(first, second @ basis(2, 2, seed=3)), angles)
    assert_close(grassmann_distance(first, second), torch.linalg.vector_norm(angles))
    assert float(basis_affinity(first, first)) == pytest.approx(1)
    assert float(basis_affinity(first, torch.eye(4).double()[:, 2:])) == 0


def test_a_step_is_the_exponential_map_of_pymanopt():
    manifolds = pytest.importorskip("pymanopt.manifolds")
    manifold = manifolds.Grassmann(7, 3)
    point = basis(7, 3)
    direction = horizontal(point, normal(7, 3, seed=1))
    moved = geodesic_step(point, direction, 0.3)
    assert_close(moved.T @ moved, torch.eye(3).double())
    expected = torch.from_numpy(manifold.exp(point.numpy(), 0.3 * direction.numpy()))
    assert_close(moved @ moved.T, expected @ expected.T)
    distance = float(manifold.dist(point.numpy(), moved.numpy()))
    assert float(grassmann_distance(point, moved)) == pytest.approx(distance)
    assert distance == pytest.approx(0.3 * float(direction.norm()))


def test_steps_work_on_stacks_and_stand_still_without_a_gradient():
    points = torch.stack([basis(5, 2, seed) for seed in range(3)])
    directions = horizontal(points, normal(3, 5, 2))
    one_by_one = [geodesic_step(p, d) for p, d in zip(points, directions, strict=True)]
    assert_close(geodesic_step(points, directions), torch.stack(one_by_one))
    assert_close(geodesic_step(points, torch.zeros_like(points)), points)
