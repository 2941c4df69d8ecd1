"""Transport from B to I: an isometry with exact gradients everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.linalg.bures_transport import transport_to_identity
from spectrim.linalg.spd import lyapunov, trace
from tests.tolerances import FLOAT64_RELATIVE


def problem(n: int = 4) -> tuple[Tensor, Tensor]:
    """An SPD matrix (n, n) and symmetric tangents (3, n, n)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(n, n + 2, generator=generator, dtype=torch.float64)
    tangents = torch.randn(3, n, n, generator=generator, dtype=torch.float64)
    return root @ root.T, tangents + tangents.mT


def squared_norm(base: Tensor, tangents: Tensor) -> Tensor:
    return trace(lyapunov(base, tangents) @ tangents) / 2


def test_transport_keeps_norms():
    base, tangents = problem()
    moved = transport_to_identity(base, tangents)
    unit = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(
        squared_norm(unit, moved), squared_norm(base, tangents), rtol=FLOAT64_RELATIVE, atol=0
    )


def test_twice_to_the_identity_is_twice_the_lyapunov_solution():
    base, tangents = problem()
    twice = transport_to_identity(base, transport_to_identity(base, tangents))
    torch.testing.assert_close(
        twice, 2 * lyapunov(base, tangents), rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE
    )


@pytest.mark.parametrize("kind", ["distinct", "equal", "two equal"])
def test_gradients_are_exact_at_equal_eigenvalues(kind):
    base, tangents = problem()
    if kind == "equal":
        base = 2 * torch.eye(4, dtype=torch.float64)
    elif kind == "two equal":
        base = torch.diag(torch.tensor([1.0, 1.0, 3.0, 5.0], dtype=torch.float64))

    def call(root: Tensor, tangents: Tensor) -> Tensor:
        return transport_to_identity((root + root.T) / 2, tangents)

    values = base.clone().requires_grad_(), tangents.clone().requires_grad_()
    assert torch.autograd.gradcheck(call, values)
