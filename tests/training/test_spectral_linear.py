"""The spectral layer: its product, its gradients without s, and its draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.training.spectral_linear import SpectralLinear, choice_probabilities
from tests.tolerances import FLOAT64_RELATIVE

SHAPES = [(9, 6), (6, 9), (7, 7)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def layer(shape: tuple[int, int], vectors: int = 3) -> SpectralLinear:
    found = SpectralLinear(drawn(*shape), drawn(shape[0], seed=1), min(shape), vectors)
    found.choose(torch.Generator().manual_seed(0))
    return found


@shapes
def test_it_is_the_weight_that_it_was_made_from(shape):
    found, x = layer(shape), drawn(4, shape[1], seed=2)
    expected = x @ drawn(*shape).T + drawn(shape[0], seed=1)
    assert (found(x) - expected).norm() < FLOAT64_RELATIVE * expected.norm()


@shapes
def test_gradients_are_the_enhanced_ones(shape):
    found, x = layer(shape), drawn(5, shape[1], seed=2).requires_grad_()
    weight = drawn(*shape).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    (twin @ weight.T + drawn(shape[0], seed=1)).square().sum().backward()
    found(x).square().sum().backward()
    u, v, own = found.u[:, found.index], found.v[:, found.index], weight.grad
    for part, expected in (
        (found.s.grad, ((found.u.T @ own) * found.v.T).sum(1)),
        (found.chosen_u.grad, own @ v),
        (found.chosen_v.grad, own.T @ u),
        (x.grad, twin.grad),
    ):
        assert (part - expected).norm() < FLOAT64_RELATIVE * expected.norm()
    assert found.u.grad is None


@shapes
@pytest.mark.parametrize("everything", [True, False])
def test_one_step_is_the_stated_first_order_change(shape, everything):
    """`dW = -eta U M V^T`, `M_ij = Gt_ij (1[j in Q] s_j + 1[i in Q] s_i)`, `M_ii = Gt_ii`."""
    rank, eta = min(shape), 1e-7
    found = layer(shape, rank if everything else 2)
    x = drawn(5, shape[1], seed=2)
    before = found.weight().detach()
    weight = before.clone().requires_grad_()
    (x @ weight.T + found.bias).square().sum().backward()
    found(x).square().sum().backward()
    with torch.no_grad():
        for part in (found.s, found.chosen_u, found.chosen_v):
            part -= eta * part.grad
    found.normalize()
    u, v, s = found.u.detach(), found.v.detach(), torch.linalg.svdvals(before)
    inside = torch.zeros(rank, dtype=torch.float64)
    inside[found.index] = 1
    turned = u.T @ weight.grad @ v
    change = turned * (inside * s + (inside * s)[:, None])
    change = change - change.diagonal().diag() + turned.diagonal().diag()
    expected = -eta * u @ change @ v.T
    if shape[0] != shape[1]:  # what leaves the span of U or V, to first order
        out, into = torch.eye(shape[0]) - u @ u.T, torch.eye(shape[1]) - v @ v.T
        expected = expected - eta * out @ weight.grad @ v * (inside * s) @ v.T
        expected = expected - eta * (u * (inside * s)) @ (into @ weight.grad.T @ u).T
    found_change = found.weight().detach() - before
    assert (found_change - expected).norm() < 1e-4 * expected.norm()


def test_columns_stay_of_unit_length_and_values_positive():
    found = layer((9, 6))
    fixed = [i for i in range(6) if i not in found.index.tolist()]
    before = found.u[:, fixed].clone()
    with torch.no_grad():
        found.chosen_u *= 3
        found.s -= 1.5
    found.normalize()
    u, v = found.vectors()
    assert (u.norm(dim=0) - 1).abs().max() < FLOAT64_RELATIVE
    assert (v.norm(dim=0) - 1).abs().max() < FLOAT64_RELATIVE
    assert float(found.s.min().detach()) == 0
    assert torch.equal(u[:, fixed], before)


def test_decomposing_anew_changes_nothing_and_restores_orthogonality():
    found = layer((9, 6))
    with torch.no_grad():
        found.chosen_u += 0.3 * drawn(9, 3, seed=4)
    found.normalize()
    before = found.weight().detach()
    found.decompose()
    assert (found.weight() - before).norm() < FLOAT64_RELATIVE * before.norm()
    u = found.vectors()[0]
    assert (u.T @ u - torch.eye(6)).norm() < FLOAT64_RELATIVE
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all()), "the signs are always the same ones"


def test_draws_favour_large_values_and_reach_all():
    s = torch.tensor([6.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    chances = choice_probabilities(s)
    assert chances.sum() == pytest.approx(1)
    assert chances.tolist() == pytest.approx([0.5 * (1 / 6 + v / 10) for v in s.tolist()])
    found, generator = layer((9, 6), 2), torch.Generator().manual_seed(1)
    seen: set[int] = set()
    for _ in range(20):
        found.choose(generator)
        assert len(set(found.index.tolist())) == 2
        seen |= set(found.index.tolist())
    assert seen == set(range(6))
    assert found.rounds == 3
