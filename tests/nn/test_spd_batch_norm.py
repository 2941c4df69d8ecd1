"""Bures-Wasserstein normalization: that of roots and, in the limit, of logarithms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.linalg.spd import bures_wasserstein_mean
from spectrim.nn.spd_batch_norm import GBWBatchNorm
from tests.tolerances import CONSTRAINT_FLOAT64, FLOAT64_RELATIVE, LIMIT_RELATIVE


def diagonals(count: int, n: int, spread: float = 0.3) -> Tensor:
    """Positive channels (count, n) of log-normal size."""
    draw = torch.randn(count, n, generator=torch.Generator().manual_seed(0)).double()
    return (spread * draw).exp()


def orthogonal(n: int) -> Tensor:
    draw = torch.randn(n, n, generator=torch.Generator().manual_seed(1)).double()
    return torch.linalg.qr(draw).Q


def matrices(count: int = 12, n: int = 4) -> Tensor:
    rows = torch.randn(count, n, 3 * n, generator=torch.Generator().manual_seed(2)).double()
    return rows @ rows.mT / (3 * n)


def close(a: Tensor, b: Tensor, relative: float = FLOAT64_RELATIVE) -> None:
    torch.testing.assert_close(a, b, rtol=relative, atol=relative)


@pytest.mark.parametrize("training", [True, False])
def test_numbers_get_the_batch_norm_of_their_roots(training):
    x = diagonals(20, 1)
    layer = GBWBatchNorm(1).double().train(training)
    plain = nn.BatchNorm1d(1).double().train(training)
    with torch.no_grad():
        layer.scale.fill_(0.2)
        layer.weight_factor.fill_(1.5)
        plain.weight.fill_(0.2)
        plain.bias.fill_(1.5)
        layer.running_mean.fill_(1.21)
        layer.running_var.fill_(0.3)
        plain.running_mean.fill_(1.1)
        plain.running_var.fill_(0.3)
    close(layer(x[..., None])[..., 0], plain(x.sqrt()).square())
    close(layer.running_mean.sqrt()[0], plain.running_mean)


def test_diagonals_are_log_normal_channels_as_the_power_vanishes():
    x = diagonals(30, 3, spread=0.7)
    layer = GBWBatchNorm(3, power=1e-3).double()
    logs = x.log()
    centered = logs - logs.mean(0)
    scale = (centered.square().sum(1).mean() + layer.eps * 4).sqrt()
    out = layer(torch.diag_embed(x)).diagonal(dim1=-2, dim2=-1).log()
    close(out, 2 * centered / scale, LIMIT_RELATIVE)


@pytest.mark.parametrize("power", [1.0, 0.5, -0.5])
def test_commuting_batches_have_mean_b_and_spread_s(power):
    turn, scale = orthogonal(4), 0.1
    x = turn @ torch.diag_embed(diagonals(25, 4)) @ turn.T
    layer = GBWBatchNorm(4, power=power, eps=0.0, learn_metric=False).double()
    with torch.no_grad():
        layer.scale.fill_(scale)
        diagonal = torch.tensor([1.0, 1.2, 0.9, 1.4], dtype=torch.float64)
        layer.weight_factor.copy_(turn @ diagonal.diag() @ turn.T)
    y = _power(layer(x), power)
    base = _power(layer.weight, power)
    close(bures_wasserstein_mean(y), base)
    distances = pytest.importorskip("pyriemann.geometry.distance")
    squares = distances.distance_wasserstein(
        y.detach().numpy(), base.expand(25, 4, 4).detach().numpy(), squared=True
    )
    close(torch.tensor(squares.mean() / power**2), torch.tensor(scale**2).double())


def _power(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.pow(power).unsqueeze(-2)) @ vectors.mT


def test_it_commutes_with_rotations():
    turn, x = orthogonal(4), matrices()
    layer = GBWBatchNorm(4, power=0.5).double()
    close(layer(turn @ x @ turn.T), turn @ layer(x) @ turn.T)


def test_scaling_a_batch_changes_nothing():
    x = matrices()
    close(GBWBatchNorm(4, eps=0.0).double()(x), GBWBatchNorm(4, eps=0.0).double()(7 * x))


def test_running_statistics_become_those_of_the_batch():
    x = matrices()
    layer = GBWBatchNorm(4, power=0.5).double()
    with torch.no_grad():
        layer.metric_factor.copy_(torch.diag(torch.tensor([1.0, 1.1, 1.3, 0.8])))
        for _ in range(300):
            trained = layer(x)
    close(layer.eval()(x), trained)


def test_all_leading_dimensions_are_one_batch():
    x = matrices()
    flat, stacked = GBWBatchNorm(4).double(), GBWBatchNorm(4).double()
    close(stacked(x.view(3, 4, 4, 4)).view(12, 4, 4), flat(x))


def test_equal_isotropic_matrices_have_finite_gradients():
    x = (2 * torch.eye(3, dtype=torch.float64)).repeat(4, 1, 1).requires_grad_()
    layer = GBWBatchNorm(3).double()
    out = layer(x)
    (out * matrices(4, 3)).sum().backward()
    close(out, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    gradients = [x.grad, *(p.grad for p in layer.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_it_starts_at_the_identity_and_trains_from_there():
    layer, x = GBWBatchNorm(4, power=0.5).double(), matrices()
    for factor in (layer.weight_factor, layer.metric_factor):
        assert torch.equal(factor, torch.eye(4, dtype=torch.float64))
    (layer(x) * matrices(12, 4).roll(1, 0)).sum().backward()
    for factor in (layer.weight_factor, layer.metric_factor):
        assert torch.isfinite(factor.grad).all()
        assert factor.grad.abs().max() > 1e-3


def test_outputs_stay_definite_where_a_step_is_large():
    """`(I + L) B (I + L)` cannot leave the cone, where Exp_B would be outside its domain."""
    layer = GBWBatchNorm(4).double()
    with torch.no_grad():
        layer.scale.fill_(50.0)
    assert torch.linalg.eigvalsh(layer(matrices())).min() > -CONSTRAINT_FLOAT64


def test_wrong_sizes_and_powers_are_named():
    with pytest.raises(InputError, match=r"expected \(..., 4, 4\)"):
        GBWBatchNorm(4)(torch.eye(3))
    with pytest.raises(InputError, match="log-Euclidean"):
        GBWBatchNorm(4, power=0.0)
