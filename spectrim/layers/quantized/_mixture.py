"""Share a weight out among few bits, low rank and single entries, in one metric.

    min || L_out^T (W - Q - A B - S) L_in ||_F,   C_x = L_in L_in^T,   C_g = L_out L_out^T

Each part is solved with the others fixed:

    Q     error feedback over a centered grid (gptq)
    A B   the weighted SVD of W - Q - S, whose A^T C_g A and B C_x B^T are diagonal: the rows of
          B and the columns of A are rounded one by one, by error feedback with C_x and with
          C_g; between the two A is refitted to the rounded B
    S     entries of largest gain G_ij^2 / (C_g,ii C_x,jj), G = C_g (W - Q - A B - S) C_x, a
          few at a time; then the least-squares values of all that are chosen
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from spectrim.layers.quantized import gptq
from spectrim.layers.quantized._base import QuantizationProblem
from spectrim.layers.quantized._error_feedback import Rounded
from spectrim.linalg.metric import CovarianceMetric
from spectrim.linalg.psd import add_damping, check_finite
from spectrim.linalg.truncated import Factors, weighted_svd

STEPS = 3
"""Batches in which entries are chosen; the values are refitted after each."""
SOLVER_STEPS = 6
"""Of conjugate gradients, preconditioned by the diagonal; twice as many at the end."""

SINGULAR = 1e-9
"""Of the mean diagonal, added before rounded factors are inverted."""


class Shares(Protocol):
    """What each part takes; see `mixed.Options`."""

    @property
    def bits(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def factor_bits(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    def rank(self, shape: tuple[int, int]) -> int: ...
    def entries(self, shape: tuple[int, int]) -> int: ...


@dataclass(frozen=True)
class Mixture:
    """Q (out, in), right (r, in), left (r, out), S (out, in); None where a part is absent.

    loss: the squared weighted error of the sum, in the damped metric.
    """

    base: Rounded | None = None
    right: Rounded | None = None
    left: Rounded | None = None
    entries: Tensor | None = None
    loss: float = float("inf")

    @property
    def parts(self) -> int:
        return sum(part is not None for part in (self.base, self.right, self.entries))

    def rest_of(self, weight: Tensor, *parts: str) -> Tensor:
        """Return weight (out, in), in float64, minus all parts but those named."""
        total = torch.zeros_like(weight)
        if self.base is not None and "base" not in parts:
            total += self.base.matrix()
        if self.right is not None and self.left is not None and "factors" not in parts:
            total += self.left.matrix().T @ self.right.matrix()
        if self.entries is not None and "entries" not in parts:
            total += self.entries
        return weight - total


class MixtureSolver:
    """Solve one weight for any shares; what several of them begin with is computed once."""

    def __init__(self, problem: QuantizationProblem, damping: float, two_sided: bool = True):
        """Raise NumericalError for a weight or covariance that is not finite."""
        self.name = problem.name
        self.weight = problem.weight.detach().double()
        check_finite(self.weight, f"the weight of {problem.name}")
        inputs = add_damping(gptq.dense(problem, "input_covariance").double(), damping)
        outputs = add_damping(gptq.dense(problem, "gradient_covariance").double(), damping)
        self.inputs = CovarianceMetric(inputs, 0.0, f"input covariance of {problem.name}")
        self.outputs = CovarianceMetric(outputs, 0.0, f"gradient covariance of {problem.name}")
        self._shape = (self.weight.shape[0], self.weight.shape[1])
        self._two_sided = two_sided
        self._bases: dict[tuple[int, int], Rounded] = {}
        self._factors: dict[tuple[int, int], Factors] = {}
        self._begun: dict[tuple[int, ...], Mixture] = {}

    def gradient(self, error: Tensor) -> Tensor:
        return self.outputs.covariance @ error @ self.inputs.covariance

    def loss(self, error: Tensor) -> float:
        return float((self.gradient(error) * error).sum())

    def solve(self, shares: Shares) -> Mixture:
        """Return the best mixture of the first pass and `rounds` passes of refitting."""
        best = found = self._first(shares)
        for _ in range(shares.rounds if found.parts > 1 else 0):
            found = self._refitted(found, shares)
            best = min(best, found, key=lambda mixture: mixture.loss)
        return best

    def _first(self, shares: Shares) -> Mixture:
        rank = shares.rank(self._shape)
        key = shares.bits, shares.group, rank, shares.factor_bits
        if key not in self._begun:
            self._begun[key] = self._begin(rank, shares)
        return self._with_entries(self._begun[key], shares)

    def _begin(self, rank: int, shares: Shares) -> Mixture:
        found, key = Mixture(), (shares.bits, shares.group)
        if shares.bits:
            if key not in self._bases:
                self._bases[key] = self._base(self.weight, shares)
            found = Mixture(self._bases[key])
        if rank:
            if key not in self._factors:
                self._factors[key] = self._svd(found.rest_of(self.weight))
            found = self._with_factors(found, self._factors[key].truncated(rank), shares)
        return found

    def _refitted(self, found: Mixture, shares: Shares) -> Mixture:
        if found.base is not None:
            base = self._base(found.rest_of(self.weight, "base"), shares)
            found = replace(found, base=base)
        if rank := shares.rank(self._shape):
            rest = found.rest_of(self.weight, "factors")
            found = self._with_factors(found, self._svd(rest).truncated(rank), shares)
        return self._with_entries(found, shares)

    def _svd(self, rest: Tensor) -> Factors:
        return weighted_svd(rest, self.outputs, self.inputs)

    def _base(self, target: Tensor, shares: Shares) -> Rounded:
        outputs = self.outputs.covariance if self._two_sided else None
        return self._round(target, self.inputs.covariance, outputs, (shares.bits, shares.group))

    def _round(
        self, target: Tensor, inputs: Tensor, outputs: Tensor | None, grid: tuple[int, int]
    ) -> Rounded:
        options = gptq.Options(*grid, scheme="centered", damping=0.0)
        return gptq.round_matrix(target, inputs, outputs, options, self.name)

    def _with_factors(
        self, found: Mixture, factors: tuple[Tensor, Tensor], shares: Shares
    ) -> Mixture:
        right, grid = factors[1], (shares.factor_bits, shares.group)
        inputs, outputs = self.inputs.covariance, self.outputs.covariance
        rounded = self._round(right, inputs, None, grid)
        seen = rounded.matrix() @ inputs
        gram = add_damping(seen @ rounded.matrix().T, SINGULAR)
        left = torch.linalg.solve(gram, seen @ found.rest_of(self.weight, "factors").T)
        return replace(found, right=rounded, left=self._round(left, outputs, None, grid))

    def _with_entries(self, found: Mixture, shares: Shares) -> Mixture:
        rest = found.rest_of(self.weight, "entries")
        entries = None
        if count := shares.entries(self._shape):
            entries = sparse_residual(rest, count, self.gradient, self._curvature())
            entries = entries.half().double()
            rest = rest - entries
        return replace(found, entries=entries, loss=self.loss(rest))

    def _curvature(self) -> Tensor:
        """Return C_g,ii C_x,jj (out, in)."""
        return torch.outer(
            self.outputs.covariance.diagonal(), self.inputs.covariance.diagonal()
        )


def sparse_residual(
    rest: Tensor, count: int, apply: Callable[[Tensor], Tensor], curvature: Tensor
) -> Tensor:
    """Return S (out, in) with `count` entries for `min <rest - S, H (rest - S)>`.

    Args:
        apply: the product with the Hessian H, which has the diagonal `curvature` (out, in).
    """
    entries, chosen = torch.zeros_like(rest), torch.zeros_like(rest, dtype=torch.bool)
    for step in range(STEPS):
        more = count * (step + 1) // STEPS - count * step // STEPS
        gain = (apply(rest - entries).square() / curvature).masked_fill(chosen, -1.0)
        chosen.view(-1)[gain.flatten().topk(more).indices] = True
        iterations = SOLVER_STEPS * (2 if step == STEPS - 1 else 1)
        places = _Places(chosen, curvature, iterations)
        entries = places.fit(rest, entries, apply)
    return entries


@dataclass(frozen=True)
class _Places:
    """Entries that may differ from zero (out, in), and how their values are found."""

    chosen: Tensor
    curvature: Tensor
    iterations: int

    def fit(self, rest: Tensor, start: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the best values, by preconditioned conjugate gradients from `start`."""
        values = start.clone()
        residual = apply(rest - values) * self.chosen
        direction = residual / self.curvature
        size = (residual * direction).sum()
        for _ in range(self.iterations):
            if float(size) <= 0:
                break
            pushed = apply(direction) * self.chosen
            length = size / (direction * pushed).sum()
            values += length * direction
            residual = residual - length * pushed
            scaled = residual / self.curvature
            size, before = (residual * scaled).sum(), size
            direction = scaled + (size / before) * direction
        return values
