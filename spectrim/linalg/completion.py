"""Matrix completion by alternating minimization with inexact inner solves.

    min_{L, R} || P(L R^T) - values ||^2,   P the observed entries, L (m, k), R (n, k)

L starts from the leading left singular vectors of the zero-filled matrix. A round makes one
factor orthonormal, `L = Q T`, which turns R into `R T^T` without changing the product, and
takes a few conjugate gradient steps on the normal equations of all rows of the other, from
where it stood; then the same with the sides exchanged. Two steps do as well as exact solves.
Cost O(m_obs k) a step, so O(m_obs k) in all up to logarithms, where exact solves take
O(m_obs k^2).

Generic matrices of rank k are recovered from about three times their k (m + n - k) degrees of
freedom. Y. Gu, Z. Song, J. Yin, L. Zhang, 2023, arXiv:2302.11068, where a sketched
preconditioner takes the place of the warm start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.grassmann import orthonormalize
from spectrim.linalg.measurements import Entries
from spectrim.linalg.psd import check_finite

POWER_STEPS = 12


@dataclass(frozen=True)
class CompletionOptions:
    """rounds at most; inner conjugate gradient steps (k of them are exact); ridge relative to
    the mean diagonal of the normal equations (1e-6 where rows have fewer than k entries);
    tolerance on the change of the relative residual.
    """

    rounds: int = 100
    inner_steps: int = 2
    ridge: float = 1e-12
    tolerance: float = 1e-7


@dataclass(frozen=True)
class Completion:
    """left (m, k), right (n, k) with `M ~ left right^T`; history: relative residual on the
    observed entries after each round.
    """

    left: Tensor
    right: Tensor
    history: tuple[float, ...]
    converged: bool


def complete(
    entries: Entries, values: Tensor, rank: int, options: CompletionOptions | None = None
) -> Completion:
    """Complete a matrix from values (m_obs,) of `entries`, float64.

    Raises InputError for an impossible rank and for a row or column without any entry, and
    NumericalError for values that are not finite.
    """
    options = options or CompletionOptions()
    if not 1 <= rank <= min(entries.shape):
        raise InputError(
            f"rank {rank} of a matrix {entries.shape}; expected 1 to {min(entries.shape)}"
        )
    entries.check()
    check_finite(values, "observed values")
    values = values.double()
    left = _leading(entries, values, rank)
    right = values.new_zeros(entries.shape[1], rank)
    flipped = Entries(entries.columns, entries.rows, entries.shape[::-1])
    size, history, settled = float(values.norm()) or 1.0, [], False
    for _ in range(options.rounds):
        left, turn = torch.linalg.qr(left)
        right = solve_rows(flipped, values, left, right @ turn.T, options)
        right, turn = torch.linalg.qr(right)
        left = solve_rows(entries, values, right, left @ turn.T, options)
        history.append(float((entries.forward(left, right) - values).norm()) / size)
        if settled := _has_settled(history, options):
            break
    return Completion(left, right, tuple(history), settled)


def _has_settled(history: list[float], options: CompletionOptions) -> bool:
    floor = 10 * (options.ridge + torch.finfo(torch.float64).eps)
    change = abs(history[-1] - history[-2]) if len(history) > 1 else float("inf")
    return history[-1] <= floor or change <= options.tolerance * history[-1]


def solve_rows(
    entries: Entries, values: Tensor, basis: Tensor, start: Tensor, options: CompletionOptions
) -> Tensor:
    """Return rows X (m, k) towards `min || P(X basis^T) - values ||^2`, a ridge problem a row.

    Conjugate gradients on all rows at once from `start`, with a step length for each.
    """
    taken = basis[entries.columns]

    def gather(weights: Tensor) -> Tensor:
        return torch.zeros_like(start).index_add_(0, entries.rows, taken * weights[:, None])

    diagonal = torch.zeros(len(start), dtype=start.dtype).index_add_(
        0, entries.rows, taken.square().mean(1)
    )
    damping = options.ridge * diagonal[:, None]

    def normal(x: Tensor) -> Tensor:
        return gather((taken * x[entries.rows]).sum(1)) + damping * x

    return _conjugate_gradients(normal, gather(values), start, options.inner_steps)


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, steps: int
) -> Tensor:
    solution, residual = start, target - apply(start)
    direction, energy = residual, residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        image = apply(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        length = torch.where(curvature > 0, energy / curvature.clamp_min(1e-300), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        following = residual.square().sum(1, keepdim=True)
        ratio = torch.where(energy > 0, following / energy.clamp_min(1e-300), 0.0)
        direction, energy = residual + ratio * direction, following
    return solution


def _leading(entries: Entries, values: Tensor, rank: int) -> Tensor:
    """Return leading left singular vectors (m, k) of the zero-filled matrix, by power steps."""
    index = torch.stack([entries.rows, entries.columns])
    filled = torch.sparse_coo_tensor(
        index, values, entries.shape, check_invariants=False
    ).coalesce()
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(entries.shape[1], rank, generator=generator, dtype=values.dtype)
    left = orthonormalize(torch.sparse.mm(filled, block))
    for _ in range(POWER_STEPS):
        left = orthonormalize(torch.sparse.mm(filled, torch.sparse.mm(filled.T, left)))
    return left
