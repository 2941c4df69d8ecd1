"""Diagonal forms by a perturbation of stated size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.diagonalization import perturb_then_diagonalize
from tests.tolerances import FLOAT64_RELATIVE


def jordan(n: int = 8) -> Tensor:
    """-I plus ones above the diagonal: one eigenvector."""
    return torch.diag(torch.ones(n - 1), 1).double() - torch.eye(n).double()


def test_it_is_the_perturbed_matrix():
    matrix, eps = jordan(), 0.1
    form = perturb_then_diagonalize(matrix, eps, steps=20)
    rebuilt = form.vectors @ torch.diag(form.eigenvalues) @ form.inverse
    assert rebuilt.imag.abs().max() < FLOAT64_RELATIVE
    torch.testing.assert_close(
        rebuilt.real, matrix + form.perturbation, rtol=0, atol=FLOAT64_RELATIVE
    )
    size = torch.linalg.matrix_norm(form.perturbation, 2)
    torch.testing.assert_close(
        size, torch.tensor(eps, dtype=torch.float64), rtol=FLOAT64_RELATIVE, atol=0
    )


def test_descent_improves_the_condition():
    start, end = (perturb_then_diagonalize(jordan(), 0.1, steps) for steps in (0, 150))
    assert end.condition < 0.8 * start.condition


def test_the_eigenvalues_are_those_of_the_matrix_as_eps_vanishes():
    matrix = torch.diag(-torch.arange(1.0, 6.0)).double() + torch.ones(5, 5).double().tril(-1)
    values = perturb_then_diagonalize(matrix, 1e-10, steps=0).eigenvalues
    expected = -torch.arange(5.0, 0.0, -1.0).double()
    found = values.real.sort().values
    torch.testing.assert_close(found, expected, rtol=FLOAT64_RELATIVE, atol=0)


def test_eigenvalues_come_in_conjugate_pairs():
    values = perturb_then_diagonalize(jordan(), 0.1, steps=5).eigenvalues
    distances = (values[:, None] - values.conj()).abs().amin(1)
    assert distances.max() < FLOAT64_RELATIVE


def test_a_normal_matrix_needs_no_perturbation():
    draw = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    form = perturb_then_diagonalize(draw - draw.T - torch.eye(6), 0.0)
    assert not form.perturbation.any()
    assert abs(form.condition - 1) < FLOAT64_RELATIVE


@pytest.mark.parametrize(("shape", "eps"), [((3, 4), 0.1), ((3, 3), -0.1)])
def test_wrong_input_is_named(shape, eps):
    with pytest.raises(InputError, match="expected a square matrix and eps >= 0"):
        perturb_then_diagonalize(torch.zeros(shape), eps)
