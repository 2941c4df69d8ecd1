"""Codes and dictionaries against planted ones, brute force and a slow pursuit."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrim.errors import InputError, NumericalError
from spectrim.linalg.sparse_coding import SparseCode, keep_largest, ksvd, omp, orthogonal
from tests.tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE

LEARNERS = {"ksvd": ksvd, "orthogonal": orthogonal}
learners = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit_rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm(dim=1, keepdim=True)


def relative_error(data: Tensor, code: SparseCode) -> float:
    return float((data - code.coefficients @ code.dictionary).norm() / data.norm())


def most_nonzeros(coefficients: Tensor) -> int:
    return int((coefficients != 0).sum(1).max())


def slow_pursuit(row: Tensor, dictionary: Tensor, nonzeros: int) -> Tensor:
    """One row, with a least-squares problem at every step."""
    taken: list[int] = []
    solution = row.new_zeros(0)
    for _ in range(nonzeros):
        rest = row - solution @ dictionary[taken]
        products = (dictionary @ rest).abs()
        products[taken] = -1
        taken.append(int(products.argmax()))
        solution = torch.linalg.lstsq(dictionary[taken].T, row[:, None]).solution[:, 0]
    coefficients = row.new_zeros(len(dictionary))
    coefficients[taken] = solution
    return coefficients


@given(
    st.integers(1, 9), st.integers(2, 10), st.integers(1, 10), st.integers(0, 10**6), st.data()
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pursuit_is_the_slow_one(rows, width, atoms, seed, data):
    nonzeros = data.draw(st.integers(1, min(atoms, width)))
    given_rows, dictionary = random(rows, width, seed=seed), random(atoms, width, seed=seed + 1)
    dictionary = unit_rows(dictionary)
    found = omp(given_rows, dictionary, nonzeros)
    for row, coefficients in zip(given_rows, found, strict=True):
        assert int((coefficients != 0).sum()) <= nonzeros
        slow = slow_pursuit(row, dictionary, nonzeros)
        difference = (row - coefficients @ dictionary).norm() - (row - slow @ dictionary).norm()
        assert float(difference.abs()) <= FLOAT64_RELATIVE**0.5 * float(row.norm())


@dtypes
def test_planted_codes_are_recovered(dtype):
    """Atoms that are nearly orthogonal, three in each row."""
    dictionary = unit_rows(torch.eye(24, dtype=torch.float64) + 0.02 * random(24, 24))
    planted = keep_largest(random(50, 24, seed=1), 3)
    planted = planted.sign() * (planted.abs() + (planted != 0))
    found = omp((planted @ dictionary).to(dtype), dictionary.to(dtype), 3)
    assert torch.equal(found != 0, planted != 0)
    error = float((found.double() - planted).norm() / planted.norm())
    assert error <= (FLOAT64_RELATIVE if dtype == torch.float64 else FLOAT32_RELATIVE)


def test_pursuit_with_repeated_atoms_and_zero_rows_stays_finite():
    dictionary = unit_rows(random(3, 6)).repeat(3, 1)
    data = torch.cat([random(4, 6, seed=1), torch.zeros(1, 6, dtype=torch.float64)])
    found = omp(data, dictionary, 8)
    assert torch.isfinite(found).all()
    assert not found[-1].any()
    basis = torch.linalg.qr(dictionary[:3].T).Q
    rest = data - data @ basis @ basis.T
    assert torch.allclose(data - found @ dictionary, rest)


@learners
@dtypes
@pytest.mark.parametrize("shape", [(40, 12), (12, 12), (30, 8)], ids=str)
def test_the_error_never_rises_and_is_what_is_returned(learner, dtype, shape):
    data = random(*shape).to(dtype)
    code = learner(data, 7, 3, 25)
    assert len(code.errors) == 25
    assert code.coefficients.shape == (shape[0], 7)
    assert code.dictionary.shape == (7, shape[1])
    assert code.coefficients.dtype == code.dictionary.dtype == dtype
    assert most_nonzeros(code.coefficients) <= 3
    slack = 1 + (1e-12 if dtype == torch.float64 else FLOAT32_RELATIVE)
    for before, after in itertools.pairwise(code.errors):
        assert after <= before * slack
    assert code.errors[-1] < 0.97 * code.errors[0]
    assert relative_error(data, code) == pytest.approx(
        (code.errors[-1] ** 0.5) / float(data.norm()), rel=1e-4
    )


@learners
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6), st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_sizes_that_fit(learner, rows, width, seed, data):
    atoms = data.draw(st.integers(1, min(rows, width)))
    nonzeros = data.draw(st.integers(1, atoms))
    code = learner(random(rows, width, seed=seed), atoms, nonzeros, 4)
    assert torch.isfinite(code.coefficients).all()
    assert torch.isfinite(code.dictionary).all()
    assert most_nonzeros(code.coefficients) <= nonzeros
    assert list(code.errors) == sorted(code.errors, reverse=True) or max(
        b - a for a, b in itertools.pairwise(code.errors)
    ) <= 1e-12 * (1 + code.errors[0])


@learners
def test_all_atoms_in_every_row_are_exact(learner):
    data = random(20, 6)
    assert relative_error(data, learner(data, 6, 6, 3)) <= FLOAT64_RELATIVE


@learners
def test_planted_dictionaries_are_found(learner):
    """Orthonormal atoms, three in a row. K-SVD may end with two atoms as one."""
    found = 0
    for seed in range(3):
        atoms = torch.linalg.qr(random(20, 20, seed=seed)).Q[:16]
        data = keep_largest(random(400, 16, seed=seed + 5), 3) @ atoms
        found += relative_error(data, learner(data, 16, 3, 30)) <= 1e-3
    assert found >= (3 if learner is orthogonal else 2)


@pytest.mark.parametrize("shape", [(40, 12), (12, 12)], ids=str)
def test_orthogonal_atoms_are_orthonormal(shape):
    dictionary = orthogonal(random(*shape), 9, 4, 5).dictionary
    gram = dictionary @ dictionary.T
    assert torch.allclose(gram, torch.eye(9, dtype=torch.float64), atol=FLOAT64_RELATIVE)


def test_orthogonal_code_is_the_best_for_its_atoms():
    code = orthogonal(random(3, 6), 3, 2, 6)
    data = random(3, 6)
    for row, coefficients in zip(data, code.coefficients, strict=True):
        errors = []
        for support in itertools.combinations(range(3), 2):
            basis = code.dictionary[list(support)]
            solution = torch.linalg.lstsq(basis.T, row[:, None]).solution[:, 0]
            errors.append(float((row - solution @ basis).norm()))
        own = float((row - coefficients @ code.dictionary).norm())
        assert own == pytest.approx(min(errors))


def test_ksvd_gives_unused_atoms_a_use():
    """All rows but one are one row, so most of the first atoms are the same."""
    data = torch.cat([random(1, 8).repeat(30, 1), random(3, 8, seed=1)])
    code = ksvd(data, 4, 2, 20)
    assert relative_error(data, code) <= 1e-6
    assert torch.allclose(code.dictionary.norm(dim=1), torch.ones(4, dtype=torch.float64))


@learners
def test_zero_data_is_coded_by_zeros(learner):
    code = learner(torch.zeros(9, 5, dtype=torch.float64), 4, 2, 3)
    assert not code.coefficients.any()
    assert torch.isfinite(code.dictionary).all()


@learners
@pytest.mark.parametrize(
    ("atoms", "nonzeros", "rounds"), [(0, 0, 1), (4, 0, 1), (3, 4, 1), (9, 2, 1), (4, 2, 0)]
)
def test_sizes_that_do_not_fit_are_an_error(learner, atoms, nonzeros, rounds):
    with pytest.raises(InputError, match="expected"):
        learner(random(8, 6), atoms, nonzeros, rounds)


def test_more_orthonormal_atoms_than_dimensions_are_an_error():
    with pytest.raises(InputError, match="6 dimensions"):
        orthogonal(random(8, 6), 7, 2, 1)


@learners
def test_non_finite_data_is_an_error(learner):
    data = random(8, 6)
    data[2, 3] = float("nan")
    with pytest.raises(NumericalError, match="non-finite"):
        learner(data, 4, 2, 1)
