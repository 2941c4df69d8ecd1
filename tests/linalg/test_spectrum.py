"""Summaries of spectra against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.linalg.spectrum import (
    effective_rank,
    stable_rank,
    tail_energy,
    trailing_block_sums,
)
from tests.tolerances import FLOAT64_RELATIVE

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
