"""Sven's relations to least squares, and a small regression."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import InputError, NumericalError
from spectrim.optim import make_optimizer
from spectrim.optim.sven import Sven, solve
from tests.tolerances import FLOAT64_RELATIVE


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def linear(inputs: int) -> nn.Linear:
    model = nn.Linear(inputs, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(drawn(1, inputs, seed=5))
        model.bias.zero_()
    return model


def residuals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return model(x).squeeze(-1) - y


def start_and_end(model: nn.Module, batch, **options) -> tuple[Tensor, Tensor]:
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    Sven(model.parameters(), lr=1.0, **options).step(model, residuals, batch)
    return before, nn.utils.parameters_to_vector(model.parameters()).detach()


def test_fewer_examples_than_parameters_are_interpolated_with_the_least_change():
    model, batch = linear(9), (drawn(4, 9), drawn(4, seed=1))
    rows = torch.cat([batch[0], torch.ones(4, 1)], 1)
    wrong = residuals(model, batch).detach()
    before, after = start_and_end(model, batch, rank_fraction=1.0, rtol=0.0)
    assert residuals(model, batch).norm() < FLOAT64_RELATIVE
    assert (before - after - torch.linalg.pinv(rows) @ wrong).norm() < FLOAT64_RELATIVE


def test_more_examples_are_solved_by_least_squares():
    model, batch = linear(3), (drawn(20, 3), drawn(20, seed=1))
    _, after = start_and_end(model, batch, rank_fraction=1.0, rtol=1e-6)
    rows = torch.cat([batch[0], torch.ones(20, 1)], 1)
    assert (after - torch.linalg.lstsq(rows, batch[1]).solution).norm() < FLOAT64_RELATIVE


@pytest.mark.parametrize(("fraction", "rtol"), [(0.5, 0.0), (1.0, 0.5), (0.25, 0.9)])
def test_the_gram_matrix_gives_the_truncated_inverse(fraction, rtol):
    jacobian, rows = drawn(8, 30), drawn(8, seed=2)
    u, s, v = torch.linalg.svd(jacobian, full_matrices=False)
    kept = (torch.arange(8) < round(fraction * 8)) & (s > rtol * s[0])
    expected = v.T @ (torch.where(kept, 1 / s, 0.0) * (u.T @ rows))
    found = jacobian.T @ solve(jacobian, rows, fraction, rtol)
    assert (found - expected).norm() < FLOAT64_RELATIVE * expected.norm()


def test_one_component_along_its_direction_is_a_gradient_step():
    jacobian = drawn(6, 20)
    u, s, _ = torch.linalg.svd(jacobian, full_matrices=False)
    found = jacobian.T @ solve(jacobian, u[:, 0], 1 / 6, 0.0)
    gradient = jacobian.T @ u[:, 0]
    assert (found - gradient / s[0] ** 2).norm() < FLOAT64_RELATIVE


def test_rows_are_means_of_groups():
    one, other = linear(9), linear(9)
    batch = drawn(8, 9), drawn(8, seed=1)
    means = batch[0].view(4, 2, 9).mean(1), batch[1].view(4, 2).mean(1)
    _, first = start_and_end(one, batch, group=2)
    _, second = start_and_end(other, means)
    assert (first - second).norm() < FLOAT64_RELATIVE


def test_a_regression_is_learned_where_adam_has_hardly_begun():
    x = torch.linspace(-1, 1, 128)[:, None]
    y = (6 * x).sin().squeeze() + 0.3 * (20 * x).sin().squeeze()
    ends = {}
    for name, rate in (("sven", 0.1), ("adamw", 1e-2)):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )
        optimizer = make_optimizer(name, model.parameters(), rate)
        for step in range(60):
            order = torch.randperm(128, generator=torch.Generator().manual_seed(step))[:64]
            batch = x[order], y[order]
            if name == "sven":
                optimizer.step(model, residuals, batch)
                continue
            optimizer.zero_grad()
            residuals(model, batch).square().mean().backward()
            optimizer.step()
        ends[name] = float(residuals(model, (x, y)).square().mean())
    assert ends["sven"] < 0.5 * ends["adamw"]


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="rank_fraction"):
        Sven(linear(2).parameters(), rank_fraction=0.0)
    model = linear(2)
    batch = torch.full((3, 2), float("nan"), dtype=torch.float64), drawn(3)
    with pytest.raises(NumericalError, match="not finite"):
        Sven(model.parameters()).step(model, residuals, batch)
