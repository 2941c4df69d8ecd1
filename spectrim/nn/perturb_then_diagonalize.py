"""Perturb then diagonalize: `min_E log ||V^-1||_F`, `A + E = V diag(l) V^-1`, `||E||_2 = eps`.

Starts a diagonal state-space layer (S4D, S5) from HiPPO-LegS, which has no stable
diagonalization itself (the condition number of its eigenvectors is 3e19 at n = 32). Columns of
V have unit norm, so that the objective is the condition number up to a constant; E starts
random and descends through `eig`. For `A + A^T <= -I` and eps < 1/2, at all frequencies,

    |G_pert - G| <= ||C|| ||B|| 4 eps / (1 - 2 eps),      Re l <= -1/2 + eps

where S4D and S5 keep the normal part of A alone and miss its spikes. An eigenvalue on the right
of the imaginary axis, possible for larger eps, is reflected, with a warning. It also gives any
dense stable state matrix, as of balanced truncation, a diagonal form. Cost: O(n^3) per step.

Yu et al., 2024, arXiv:2310.01698; HiPPO and its normal part: arXiv:2008.07669, 2206.11893.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError, NumericalWarning
from spectrim.linalg.diagonalization import perturb_then_diagonalize

REFERENCE = "Yu et al., 2024, arXiv:2310.01698 (S4-PTD, S5-PTD)"


@dataclass(frozen=True)
class StateSpace:
    """`x' = (diag(l) - p p^H) x + b u`, `y = C V x`, in the basis V of the eigenvectors.

    eigenvalues: l (n,). input: b = V^-1 B (n,). vectors: V (n, n). low_rank: p (n,), of the
    kind `dplr` alone. All complex; a layer takes l, b and its C times V.
    """

    eigenvalues: Tensor
    input: Tensor
    vectors: Tensor
    low_rank: Tensor | None = None

    def transfer(self, frequencies: Tensor, output: Tensor) -> Tensor:
        """Return `C (i w - A)^-1 B` at real w (f,) for C = output (n,), complex (f,)."""
        resolvent = 1 / (1j * frequencies[:, None] - self.eigenvalues)
        row, states = output.to(resolvent) @ self.vectors, resolvent * self.input
        if self.low_rank is not None:
            bent = resolvent * self.low_rank
            share = (states @ self.low_rank.conj()) / (1 + bent @ self.low_rank.conj())
            states = states - share[:, None] * bent
        return states @ row


def hippo_legs(n: int) -> tuple[Tensor, Tensor]:
    """Return A (n, n) and B (n,) of HiPPO-LegS, float64.

    `A_ij = -sqrt((2i+1)(2j+1))` below the diagonal and `-(i+1)` on it; `B_i = sqrt(2i+1)`.
    """
    root = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    below = -torch.outer(root, root).tril(-1)
    return below - torch.diag(torch.arange(1, n + 1, dtype=torch.float64)), root


def ssm_init(n: int, kind: str = "ptd", eps: float = 0.3, steps: int = 150) -> StateSpace:
    """Return HiPPO-LegS of n states in diagonal form.

    kind: `ptd` (perturbed by eps), `s4d` (the normal part and B / 2, as S4D and S5 start) or
    `dplr` (exact, diagonal plus low rank, as S4). Raises InputError for another.
    """
    if kind not in KINDS:
        raise InputError(f"unknown start '{kind}'; available: {', '.join(KINDS)}")
    return KINDS[kind](n, eps, steps)


def _perturbed(n: int, eps: float, steps: int) -> StateSpace:
    matrix, column = hippo_legs(n)
    form = perturb_then_diagonalize(matrix, eps, steps)
    values = form.eigenvalues
    if unstable := int((values.real >= 0).sum()):
        warnings.warn(
            f"eps={eps:g} made {unstable} of {n} eigenvalues unstable; they are reflected "
            "(eps below 0.5 makes none)",
            NumericalWarning,
            stacklevel=3,
        )
        values = torch.complex(-values.real.abs(), values.imag)
    return StateSpace(values, form.inverse @ column.to(values), form.vectors)


def _normal(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues and unitary eigenvectors of `A + P P^T`, and P (n,)."""
    matrix, _ = hippo_legs(n)
    rank_one = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    skew = matrix + torch.outer(rank_one, rank_one) + 0.5 * torch.eye(n, dtype=torch.float64)
    rates, vectors = torch.linalg.eigh(-1j * (skew - skew.T) / 2)
    return torch.complex(torch.full_like(rates, -0.5), rates), vectors, rank_one


def _s4d(n: int, eps: float, steps: int) -> StateSpace:
    values, vectors, _ = _normal(n)
    return StateSpace(values, vectors.mH @ (hippo_legs(n)[1] / 2).to(values), vectors)


def _dplr(n: int, eps: float, steps: int) -> StateSpace:
    values, vectors, rank_one = _normal(n)
    column, low_rank = hippo_legs(n)[1].to(values), rank_one.to(values)
    return StateSpace(values, vectors.mH @ column, vectors, vectors.mH @ low_rank)


KINDS: dict[str, Callable[[int, float, int], StateSpace]] = {
    "ptd": _perturbed,
    "s4d": _s4d,
    "dplr": _dplr,
}
INITIALIZER = ssm_init
