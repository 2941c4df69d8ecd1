"""Damping, Cholesky factors and metrics."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from spectrim.errors import NumericalError, NumericalWarning
from spectrim.linalg.metric import CovarianceMetric, DiagonalMetric
from spectrim.linalg.psd import add_damping, cholesky, descending_eigh


def gram(rows: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return x.T @ x / rows


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.1])
def test_cholesky_of_the_damped_matrix(scale, damping):
    matrix = gram(50, 8) * scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factor = cholesky(matrix, damping)
    expected = matrix + damping * matrix.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    assert torch.allclose(factor @ factor.T, expected, rtol=1e-12, atol=1e-13 * scale)
    assert torch.equal(factor, factor.tril())
    assert torch.allclose(add_damping(matrix, damping), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("damping", [0.0, 1e-14])
def test_singular_matrix_is_damped_more_and_says_so(damping):
    matrix = gram(3, 8)
    matrix -= 1e-10 * torch.eye(8, dtype=torch.float64)
    with pytest.warns(NumericalWarning, match=r"my matrix is singular .* used 1e-\d+") as seen:
        factor = cholesky(matrix, damping, "my matrix")
    used = float(str(seen[0].message).split("used ")[1])
    assert 1e-11 < used / float(matrix.diagonal().mean()) < 1e-7
    exact = add_damping(matrix, used)
    assert torch.allclose(factor @ factor.T, exact, rtol=1e-10, atol=1e-14)
    assert torch.linalg.cholesky_ex(add_damping(matrix, used / 10)).info.item() > 0


def test_the_matrix_is_not_changed():
    matrix = gram(20, 5)
    before = matrix.clone()
    cholesky(matrix, 0.1)
    add_damping(matrix, 0.1)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.zeros(3, 3), "is zero"),
        (torch.full((3, 3), float("nan")), "non-finite"),
        (torch.full((3, 3), float("inf")), "non-finite"),
        (torch.diag(torch.tensor([3.0, 3.0, -5.0])), "semi-definite"),
        (-torch.eye(3), "is zero"),
    ],
)
def test_unusable_matrices_are_errors_with_their_name(matrix, words):
    with pytest.raises(NumericalError, match=f"C_x of layer 3.*{words}"):
        cholesky(matrix, 1e-3, "C_x of layer 3")


def test_eigenvalues_descend_and_are_clipped():
    matrix = gram(3, 6) - 1e-12 * torch.eye(6)
    values, vectors = descending_eigh(matrix)
    assert bool((values >= 0).all())
    assert bool((values.diff() <= 0).all())
    assert torch.allclose(vectors * values @ vectors.T, matrix, atol=1e-10)


def test_covariance_metric_factors_only_when_asked():
    singular = gram(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = CovarianceMetric(singular, 0.0)
        metric.gram(torch.ones(6, 1, dtype=torch.float64))
    with pytest.warns(NumericalWarning):
        metric.whiten(torch.ones(6, 1, dtype=torch.float64))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_diagonal_metric_needs_positive_numbers(bad):
    with pytest.raises(NumericalError, match="positive"):
        DiagonalMetric(torch.tensor([1.0, bad]))
