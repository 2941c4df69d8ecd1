"""Mixings of residual streams: sums and norm are 1, and nothing is averaged away."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.nn.spectral_sphere import SpectralSphere, hyper_connection, spectral_sphere
from tests.tolerances import CONSTRAINT_FLOAT64, FLOAT32_RELATIVE


def mixings(count: int = 48, n: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.randn(count, n - 1, n - 1, generator=torch.Generator().manual_seed(0)).double()
    return spectral_sphere(draw), draw


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_sums_and_norm_are_one(n):
    mixing, draw = mixings(n=n)
    singular = torch.linalg.svdvals(mixing)
    for value in (mixing.sum(-1), mixing.sum(-2), singular[:, 0]):
        assert (value - 1).abs().max() < CONSTRAINT_FLOAT64
    second = draw.tanh().diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    assert (singular[:, 1] - second).abs().max() < CONSTRAINT_FLOAT64


def test_negative_entries_occur():
    assert (mixings()[0] < 0).any()


def test_one_stream_is_the_plain_residual():
    assert torch.equal(spectral_sphere(torch.zeros(5, 0, 0)), torch.ones(5, 1, 1))
    assert torch.equal(SpectralSphere()(torch.randn(5, 1, 1)), torch.ones(5, 1, 1))


def test_zero_generators_average():
    mixing = spectral_sphere(torch.zeros(3, 3).double())
    assert (mixing - 0.25).abs().max() < CONSTRAINT_FLOAT64


def test_products_keep_what_doubly_stochastic_ones_average_away():
    package = pytest.importorskip("hyper_connections.manifold_constrained_hyper_connections")
    logits = torch.randn(48, 4, 4, generator=torch.Generator().manual_seed(1))
    stochastic = package.sinkhorn_knopps(logits).double()
    sphere = SpectralSphere()(4 * logits.double())
    found = [
        torch.linalg.svdvals(torch.linalg.multi_dot(list(m))) for m in (sphere, stochastic)
    ]
    assert abs(found[0][0] - 1) < CONSTRAINT_FLOAT64
    assert found[0][1] > 1e-3
    assert found[1][1] < 1e-9


def test_identity_logits_start_at_the_identity():
    """tanh(4) = .9993 in the three directions besides the mean."""
    distance = torch.linalg.matrix_norm(SpectralSphere()(torch.eye(4).double()) - torch.eye(4))
    assert 0.001 < distance < 0.0013


@pytest.mark.parametrize("streams", [1, 4])
def test_a_silent_branch_leaves_the_sum_of_the_streams(streams):
    pytest.importorskip("hyper_connections")
    torch.manual_seed(0)
    branch = nn.Linear(6, 6)
    nn.init.zeros_(branch.weight)
    nn.init.zeros_(branch.bias)
    connection = hyper_connection(branch, 6, streams, layer=2)
    nn.init.normal_(connection.dynamic_alpha_fn)
    nn.init.normal_(connection.residual_scale)
    x = torch.randn(2 * streams, 5, 6)
    mixed = connection(x)
    assert streams == 1 or not torch.allclose(mixed, x, atol=0.1)
    torch.testing.assert_close(
        mixed.view(2, streams, 5, 6).sum(1),
        x.view(2, streams, 5, 6).sum(1),
        rtol=FLOAT32_RELATIVE,
        atol=FLOAT32_RELATIVE,
    )


def test_a_connection_reads_and_writes_its_own_stream_most():
    pytest.importorskip("hyper_connections")
    connection = hyper_connection(nn.Identity(), 6, 4, layer=6)
    assert connection.static_beta.tolist() == [-1, -1, 1, -1]
    assert connection.static_alpha[:, 0].tolist() == [-1, -1, 1, -1]
    assert torch.equal(connection.static_alpha[:, 1:], torch.eye(4))


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hyper_connections", None)
    with pytest.raises(InputError, match=r"spectrim\[nn\]"):
        hyper_connection(nn.Identity(), 6)
