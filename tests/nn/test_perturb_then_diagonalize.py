"""Diagonal starts of HiPPO: a bounded error of the transfer function at every frequency."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.errors import InputError, NumericalWarning
from spectrim.nn.perturb_then_diagonalize import KINDS, hippo_legs, ssm_init
from tests.tolerances import FLOAT64_RELATIVE

N = 16
FREQUENCIES = torch.logspace(-2, 4, 400, dtype=torch.float64)


def output(n: int = N) -> Tensor:
    draw = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draw / draw.norm()


def exact(n: int = N, frequencies: Tensor = FREQUENCIES) -> Tensor:
    """C (i w - A)^-1 B by dense solves."""
    matrix, column = hippo_legs(n)
    unit = torch.eye(n, dtype=torch.complex128)
    systems = 1j * frequencies[:, None, None] * unit - matrix
    return torch.linalg.solve(systems, column.to(systems)) @ output(n).to(systems)


def test_hippo_is_normal_plus_rank_one():
    matrix, _ = hippo_legs(N)
    rank_one = (torch.arange(N, dtype=torch.float64) + 0.5).sqrt()
    rest = matrix + torch.outer(rank_one, rank_one) + 0.5 * torch.eye(N)
    assert (rest + rest.T).abs().max() < FLOAT64_RELATIVE
    assert torch.linalg.eigvals(matrix).real.max() < 0


def test_diagonal_plus_low_rank_is_exact():
    found = ssm_init(N, "dplr").transfer(FREQUENCIES, output())
    torch.testing.assert_close(found, exact(), rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE)


def test_the_error_is_within_its_bound_at_every_frequency():
    eps = 0.1
    found = ssm_init(N, "ptd", eps, steps=40)
    error = (found.transfer(FREQUENCIES, output()) - exact()).abs().max()
    assert 0 < error <= hippo_legs(N)[1].norm() * 4 * eps / (1 - 2 * eps)
    assert found.eigenvalues.real.max() <= -0.5 + eps


@pytest.mark.slow
def test_it_follows_a_sinusoid_where_the_normal_part_does_not():
    """At a spike of the normal part: relative to |G|, .003 and 23 were measured elsewhere."""
    n, frequencies = 32, torch.logspace(0, 3, 4000, dtype=torch.float64)
    truth = exact(n, frequencies)
    normal, perturbed = (
        ((ssm_init(n, kind).transfer(frequencies, output(n)) - truth) / truth).abs()
        for kind in ("s4d", "ptd")
    )
    spike = int(normal.argmax())
    assert normal[spike] > 3
    assert perturbed[spike] < 0.05
    assert perturbed.median() < normal.median() / 3


def test_a_large_perturbation_is_reflected_and_said():
    with pytest.warns(NumericalWarning, match="reflected"):
        found = ssm_init(N, "ptd", eps=30.0, steps=0)
    assert found.eigenvalues.real.max() < 0


def test_unknown_kinds_are_named():
    with pytest.raises(InputError, match=", ".join(KINDS)):
        ssm_init(N, "s4")
