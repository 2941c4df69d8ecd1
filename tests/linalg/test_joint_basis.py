"""Estimates of the error of a joint basis: never below the truth, and the truth where they
can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrim.linalg.joint_basis import (
    ESTIMATES,
    JointBasis,
    clusters,
    incremental_estimate,
    residual_bound,
    weyl_bound,
)
from tests.tolerances import FLOAT64_RELATIVE, JOINT_ERROR_ABSOLUTE

estimates = pytest.mark.parametrize("name", ESTIMATES)
examples = settings(max_examples=120, deadline=None, derandomize=True)


def exact_error(matrices: list[Tensor], rank: int) -> float:
    """The error of the best basis of this rank, from the singular values of all rows."""
    energies = torch.linalg.svdvals(torch.cat([*matrices]).double()).square()
    return float(energies[rank:].sum() / energies.sum()) ** 0.5


def random_matrices(rows: list[int], width: int, seed: int, related: float) -> list[Tensor]:
    """(rows, width), of unlike sizes, with decaying spectra and a common part."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    common = normal(width, width) * 0.8 ** torch.arange(width)
    found = []
    for index, count in enumerate(rows):
        own = normal(count, width) * 0.7 ** torch.arange(width)
        mixed = related * normal(count, width) @ common + (1 - related) * own
        found.append(mixed * 3.0 ** (index % 3))
    return found


problems = st.tuples(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(0, 10**6),
    st.floats(0, 1),
)


@estimates
@given(problems, st.integers(1, 10))
@examples
def test_never_below_the_true_error(name, problem, rank):
    matrices = random_matrices(*problem)
    estimate = ESTIMATES[name](matrices, rank)
    assert exact_error(matrices, rank) - JOINT_ERROR_ABSOLUTE <= estimate <= 1.0


def test_the_published_bounds_need_a_rank_above_that_of_the_first():
    """Both are below the truth for two matrices of one full spectrum at half their rank, which
    is why ours carry what the first r directions leave of the first matrix."""
    matrices = [2 * torch.eye(4).double(), torch.eye(4).double()]
    true, rank = exact_error(matrices, 2), 2
    published_weyl = (4 / 20) ** 0.5
    published_residual = (2 * 4 / 20) ** 0.5
    assert published_weyl < true
    assert published_residual < true
    assert weyl_bound(matrices, rank) >= true
    assert residual_bound(matrices, rank) == pytest.approx(true)


def test_weyl_is_the_published_formula_where_that_holds():
    wide, small = random_matrices([3, 2], 8, 0, 0.0)
    total = wide.square().sum() + small.square().sum()
    largest = max(wide.square().sum(), small.square().sum())
    assert weyl_bound([wide, small], 3) == pytest.approx(float(1 - largest / total) ** 0.5)


@given(problems, st.integers(1, 10))
@examples
def test_incremental_with_all_directions_is_exact(problem, rank):
    matrices = random_matrices(*problem)
    estimate = incremental_estimate(matrices, rank, oversampling=problem[1])
    assert estimate == pytest.approx(exact_error(matrices, rank), abs=JOINT_ERROR_ABSOLUTE)


def test_oversampling_brings_it_to_the_truth():
    matrices = random_matrices([40] * 6, 40, 3, 0.5)
    true = exact_error(matrices, 8)
    errors = [incremental_estimate(matrices, 8, extra) - true for extra in (0, 4, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 1e-4 * true < errors[0]


def test_joint_basis_is_orthonormal_and_keeps_what_it_says():
    matrices = random_matrices([7, 5, 6], 12, 1, 0.3)
    joint = JointBasis.of(12)
    for matrix in matrices:
        joint = joint.extended(matrix, 9)
    gram = joint.basis.T @ joint.basis
    assert torch.allclose(gram, torch.eye(9).double(), atol=FLOAT64_RELATIVE)
    assert joint.total == pytest.approx(float(torch.cat(matrices).square().sum()))
    assert joint.energies.tolist() == sorted(joint.energies.tolist(), reverse=True)


@estimates
def test_zero_and_equal_matrices(name):
    estimate = ESTIMATES[name]
    zero = torch.zeros(3, 6).double()
    assert estimate([zero, zero], 2) == 0.0
    matrix = random_matrices([4], 6, 2, 0.0)[0]
    assert estimate([matrix, zero], 4) <= JOINT_ERROR_ABSOLUTE
    twice = estimate([matrix, matrix], 4)
    assert twice == pytest.approx(0.5**0.5 if name == "weyl" else 0, abs=JOINT_ERROR_ABSOLUTE)


def test_clusters_are_the_matrices_of_one_row_space():
    generator = torch.Generator().manual_seed(0)
    spaces = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    mixing = torch.randn(6, 8, 3, generator=generator, dtype=torch.float64)
    matrices = [mix @ spaces[index % 2] for index, mix in enumerate(mixing)]

    def error(chosen) -> float:
        return exact_error([matrices[index] for index in chosen], 3)

    assert clusters(matrices, error, 0.01, 6) == [[0, 2, 4], [1, 3, 5]]
    assert sorted(map(len, clusters(matrices, error, 0.01, 2))) == [1, 1, 2, 2]
    assert clusters(matrices, error, 2.0, 6) == [list(range(6))]
    assert clusters(matrices, error, -1.0, 6) == [[i] for i in range(6)]
