"""Functions of SPD matrices against autograd, closed forms and pyriemann."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from spectrim.linalg.spd import (
    bures_wasserstein_distance,
    bures_wasserstein_geodesic,
    bures_wasserstein_log,
    bures_wasserstein_mean,
    bures_wasserstein_square,
    lyapunov,
    spd_exp,
    spd_inverse_sqrt,
    spd_log,
    spd_power,
    spd_sqrt,
    trace,
)
from tests.tolerances import FLOAT64_RELATIVE, RIEMANN_RELATIVE, ROUNDING_ABSOLUTE


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def spd(*stack: int, size: int = 4, seed: int = 0) -> torch.Tensor:
    root = normal(*stack, size, size + 2, seed=seed)
    return root @ root.mT


def assert_close(found, expected, rtol=FLOAT64_RELATIVE):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=ROUNDING_ABSOLUTE)


def test_functions_undo_each_other():
    matrices = spd(3)
    identity = torch.eye(4).double().expand(3, 4, 4)
    root = spd_sqrt(matrices)
    assert_close(root @ root, matrices)
    assert_close(spd_inverse_sqrt(matrices) @ root, identity)
    assert_close(spd_exp(spd_log(matrices)), matrices)
    assert_close(spd_power(spd_power(matrices, 3.0), 1 / 3), matrices)


@pytest.mark.parametrize("function", [spd_sqrt, spd_inverse_sqrt, spd_log, spd_exp])
@pytest.mark.parametrize("case", ["distinct", "equal eigenvalues"])
def test_gradients_are_right_where_eigenvalues_agree_too(function, case):
    matrix = spd() / 8 if case == "distinct" else torch.eye(3).double() * 2
    symmetric = lambda free: function((free + free.mT) / 2)  # noqa: E731
    assert gradcheck(symmetric, (matrix.clone().requires_grad_(),))


def test_the_lyapunov_equation_is_solved():
    matrix, right = spd(2), normal(2, 4, 4)
    right = right + right.mT
    solution = lyapunov(matrix, right)
    assert_close(matrix @ solution + solution @ matrix, right)


def test_the_distance_is_that_of_pyriemann_and_of_commuting_matrices():
    distance = pytest.importorskip("pyriemann.geometry.distance")
    first, second = spd(), spd(seed=1)
    expected = float(distance.distance_wasserstein(first.numpy(), second.numpy()))
    assert float(bures_wasserstein_distance(first, second)) == pytest.approx(expected)
    a, b = torch.tensor([4.0, 0.0, 1.0]).double(), torch.tensor([1.0, 9.0, 1.0]).double()
    expected = torch.linalg.vector_norm(a.sqrt() - b.sqrt())
    assert_close(bures_wasserstein_distance(a.diag(), b.diag()), expected)


def test_the_distance_is_invariant_and_differentiable():
    first, second, turn = spd(), spd(seed=1), torch.linalg.qr(normal(4, 4)).Q
    turned = bures_wasserstein_distance(turn @ first @ turn.T, turn @ second @ turn.T)
    assert_close(turned, bures_wasserstein_distance(first, second))
    assert float(bures_wasserstein_square(first, first)) == pytest.approx(0, abs=1e-12)
    loss = lambda free: bures_wasserstein_square((free + free.T) / 2, second)  # noqa: E731
    assert gradcheck(loss, (first.requires_grad_(),))


def test_the_mean_is_that_of_pyriemann():
    mean = pytest.importorskip("pyriemann.geometry.mean")
    matrices, weights = spd(5), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()
    expected = mean.mean_wasserstein(
        matrices.numpy(), sample_weight=weights.numpy(), tol=1e-12, maxiter=200
    )
    found = bures_wasserstein_mean(matrices, weights)
    assert_close(found, torch.from_numpy(expected), RIEMANN_RELATIVE)


def test_the_mean_of_commuting_matrices_is_the_square_of_the_mean_root():
    values = normal(6, 4).exp()
    found = bures_wasserstein_mean(torch.diag_embed(values))
    assert_close(found, values.sqrt().mean(0).square().diag())


def bures_wasserstein_exp(base, tangent):
    """`B + V + L B L`, `B L + L B = V`; valid while `I + L` is positive definite."""
    solved = lyapunov(base, tangent)
    return base + tangent + solved @ base @ solved


def test_logarithm_exponential_and_geodesic_agree():
    base, point = spd(), spd(seed=1)
    tangent = bures_wasserstein_log(base, point)
    assert_close(bures_wasserstein_exp(base, tangent), point)
    length = (trace(lyapunov(base, tangent) @ tangent) / 2).sqrt()
    distance = bures_wasserstein_distance(base, point)
    assert_close(length, distance)
    for time in (0.0, 0.3, 1.0):
        between = bures_wasserstein_geodesic(base, point, time)
        assert_close(bures_wasserstein_exp(base, time * tangent), between)
        left = bures_wasserstein_square(base, between).clamp_min(0).sqrt()
        assert float(left) == pytest.approx(time * float(distance), abs=1e-6)
