"""Summaries of spectra against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.linalg.spectrum import (
    effective_rank,
    matrix_entropy,
    matrix_nuclear_norm,
    singular_values,
    stable_rank,
    tail_energy,
    tail_exponent,
    token_directions,
    trailing_block_sums,
)
from tests.tolerances import FLOAT64_RELATIVE, HILL_RELATIVE, SPECTRUM_RELATIVE

quick = settings(max_examples=50, deadline=None, derandomize=True)
spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


@given(spectra)
@quick
def test_tail_energy_is_the_sum_of_what_is_cut(spectrum):
    tails = tail_energy(spectrum)
    assert tails.shape == (len(spectrum) + 1,)
    for rank in range(len(spectrum) + 1):
        assert math.isclose(
            tails[rank], sum(float(s) ** 2 for s in spectrum[rank:]), rel_tol=FLOAT64_RELATIVE
        )


@given(st.integers(1, 9), st.integers(0, 10**6))
@quick
def test_trailing_block_sums_against_loops(size, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    sums = trailing_block_sums(matrix)
    assert sums.shape == (size + 1,)
    for rank in range(size + 1):
        naive = sum(float(matrix[i, j]) for i in range(rank, size) for j in range(rank, size))
        assert abs(float(sums[rank]) - naive) <= FLOAT64_RELATIVE * float(matrix.norm())


@given(spectra)
@quick
def test_ranks_against_their_formulas(spectrum):
    energy = [float(s) ** 2 for s in spectrum]
    shares = [e / sum(energy) for e in energy]
    entropy = -sum(p * math.log(p) for p in shares if p > 0)
    assert math.isclose(effective_rank(spectrum), math.exp(entropy), rel_tol=FLOAT64_RELATIVE)
    assert math.isclose(
        stable_rank(spectrum), sum(energy) / max(energy), rel_tol=FLOAT64_RELATIVE
    )


def test_ranks_of_a_flat_and_of_a_single_spectrum():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert stable_rank(torch.ones(7)) == pytest.approx(7)
    single = torch.tensor([3.0, 0.0, 0.0])
    assert effective_rank(single) == pytest.approx(1)
    assert stable_rank(single) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4)])
def test_singular_values_against_svd(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.linalg.svdvals(matrix)
    found = singular_values(matrix)
    assert torch.allclose(found, expected, rtol=0, atol=SPECTRUM_RELATIVE * float(expected[0]))


def test_the_tail_exponent_is_that_of_a_power_law():
    """Quantiles of `p(lambda) ~ lambda^-alpha` give back alpha."""
    for alpha in (1.5, 2.0, 4.0):
        shares = (torch.arange(20_000).double() + 0.5) / 20_000
        energies = (1 - shares) ** (-1 / (alpha - 1))
        spectrum = energies.sqrt().flip(0)
        assert tail_exponent(spectrum) == pytest.approx(alpha, rel=HILL_RELATIVE)


def test_the_tail_exponent_against_a_loop():
    spectrum = [5.0, 3.0, 2.0, 1.0, 0.5]
    logs = sum(math.log(s**2 / 2.0**2) for s in spectrum[:2])
    assert tail_exponent(torch.tensor(spectrum)) == pytest.approx(1 + 2 / logs)


def test_spectra_without_a_tail():
    assert tail_exponent(torch.ones(6)) == math.inf
    assert math.isnan(tail_exponent(torch.tensor([2.0, 0.0])))


def test_directions_are_centered_and_of_length_one():
    hidden = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    for found, row in zip(token_directions(hidden), hidden.double(), strict=True):
        centered = row - hidden.double().mean(0)
        assert torch.allclose(found, centered / centered.norm(), rtol=FLOAT64_RELATIVE)
    assert not token_directions(torch.ones(3, 4)).any()


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 10**6))
@quick
def test_the_matrix_nuclear_norm_against_loops(tokens, width, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = token_directions(torch.randn(tokens, width, generator=generator))
    columns = sorted(sum(v**2 for v in column) ** 0.5 for column in rows.T.tolist())[::-1]
    found = matrix_nuclear_norm(rows)
    assert found == pytest.approx(sum(columns[: min(tokens, width)]) / tokens)
    if tokens >= width:
        exact = float(torch.linalg.matrix_norm(rows, "nuc")) / tokens
        assert found >= exact * (1 - FLOAT64_RELATIVE)


def test_the_matrix_nuclear_norm_of_orthogonal_columns_is_exact():
    rows = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    exact = float(torch.linalg.matrix_norm(rows, "nuc")) / 8
    assert matrix_nuclear_norm(rows) == pytest.approx(exact)
    assert matrix_entropy(rows) == pytest.approx(math.log(4))


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 10**6))
@quick
def test_the_matrix_entropy_against_the_eigenvalues(tokens, width, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = token_directions(torch.randn(tokens, width, generator=generator))
    shares = torch.linalg.eigvalsh(rows.T @ rows / tokens)
    expected = -sum(p * math.log(p) for p in shares.tolist() if p > 1e-14)
    assert matrix_entropy(rows) == pytest.approx(expected, rel=SPECTRUM_RELATIVE, abs=1e-9)


def test_entropy_of_nothing():
    assert matrix_entropy(torch.zeros(3, 4)) == 0.0
