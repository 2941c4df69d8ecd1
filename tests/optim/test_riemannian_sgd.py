"""Riemannian SGD: geodesics for bases, torch's SGD for everything else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.linalg.grassmann import grassmann_distance, horizontal, orthonormalize
from spectrim.linalg.manifold_parameter import GrassmannParameter
from spectrim.optim.riemannian_sgd import RiemannianSGD, split_parameters
from tests.tolerances import CONSTRAINT_FLOAT64, FLOAT64_RELATIVE, ORTHONORMAL_BFLOAT16

SHAPE = (3, 8, 2)


def bases(seed: int = 0) -> GrassmannParameter:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return GrassmannParameter(orthonormalize(draw))


def moved(lr: float, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Bases before and after one step, and the horizontal gradient."""
    point = bases()
    before = point.detach().clone()
    point.grad = size * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).double()
    RiemannianSGD([point], lr=lr).step()
    return before, point.detach(), horizontal(before, point.grad)


def test_one_step_is_the_exponential_map_of_pymanopt():
    manifolds = pytest.importorskip("pymanopt.manifolds")
    before, after, tangent = moved(0.3)
    expected = torch.from_numpy(
        manifolds.Grassmann(8, 2, k=3).exp(before.numpy(), (-0.3 * tangent).numpy())
    )
    torch.testing.assert_close(
        after @ after.mT, expected @ expected.mT, rtol=0, atol=CONSTRAINT_FLOAT64
    )


def test_an_arc_is_as_long_as_its_tangent():
    before, after, tangent = moved(0.01)
    arc = 0.01 * torch.linalg.matrix_norm(tangent)
    torch.testing.assert_close(grassmann_distance(before, after), arc, rtol=1e-7, atol=0)


def test_a_zero_gradient_leaves_the_subspaces():
    before, after, _ = moved(0.3, size=0.0)
    assert (before @ before.mT - after @ after.mT).abs().max() < CONSTRAINT_FLOAT64


def test_it_finds_the_principal_subspace():
    """The trace of `S^T C S` is largest on the leading eigenvectors."""
    root = torch.randn(8, 8, generator=torch.Generator().manual_seed(2)).double()
    axes = torch.linalg.qr(root).Q
    covariance = (axes / torch.arange(1, 9)) @ axes.T
    point = bases()
    optimizer = RiemannianSGD([point], lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        (-(point.mT @ covariance @ point).diagonal(dim1=-2, dim2=-1).sum()).backward()
        optimizer.step()
    assert grassmann_distance(point.detach(), axes[:, :2].expand(SHAPE)).max() < 1e-6
    unit = torch.eye(2, dtype=torch.float64)
    assert (point.mT @ point - unit).abs().max() < CONSTRAINT_FLOAT64


def test_plain_parameters_get_the_sgd_of_torch():
    torch.manual_seed(0)
    ours = nn.Linear(5, 4).double()
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.1}
    pairs = [
        (ours, RiemannianSGD(ours.parameters(), **settings)),
        (theirs, torch.optim.SGD(theirs.parameters(), **settings)),
    ]
    x = torch.randn(6, 5).double()
    for _ in range(5):
        for model, optimizer in pairs:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=FLOAT64_RELATIVE, atol=0)


def test_it_resumes_to_the_bit():
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).double()

    def run(point: GrassmannParameter, optimizer: RiemannianSGD, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (point * target).sum().backward()
            optimizer.step()

    whole, first = bases(), bases()
    run(whole, RiemannianSGD([whole]), 9)
    before = RiemannianSGD([first])
    run(first, before, 4)
    second = copy.deepcopy(first)
    after = RiemannianSGD([second])
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    run(second, after, 5)
    assert isinstance(second, GrassmannParameter)
    assert torch.equal(second, whole)


def test_half_precision_stays_orthonormal_to_its_rounding():
    point = GrassmannParameter(bases().detach().bfloat16())
    optimizer = RiemannianSGD([point], lr=0.05)
    for seed in range(30):
        point.grad = torch.randn(
            SHAPE, generator=torch.Generator().manual_seed(seed)
        ).bfloat16()
        optimizer.step()
    gram = point.detach().float().mT @ point.detach().float()
    assert (gram - torch.eye(2)).abs().max() < ORTHONORMAL_BFLOAT16


def test_parameters_are_split_by_their_class():
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_parameter("bases", bases())
    curved, plain = split_parameters(model)
    assert [id(p) for p in curved] == [id(model.bases)]
    assert [id(p) for p in plain] == [id(p) for p in model[0].parameters()]


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": -0.1}, {"qr_every": 0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(InputError, match="expected none below 0"):
        RiemannianSGD([bases()], **wrong)
