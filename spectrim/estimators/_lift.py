"""Projected gradient steps of supervised dictionary learning, on lifted matrices of rank r."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.estimators._sklearn import to_tensor
from spectrim.linalg.grassmann import principal_subspace


@dataclass
class Lift:
    """The lifted problem: rows (n, p), targets (n, q) in [0, 1], covariates (n, 1 + c)."""

    rows: Tensor
    targets: Tensor
    covariates: Tensor
    rank: int
    tradeoff: float
    ridge: float
    filters: bool

    def __post_init__(self) -> None:
        bend = 0.25 if self.targets.shape[1] == 1 else 0.5  # of the logistic loss, the softmax
        beside = float(torch.linalg.matrix_norm(self.covariates, 2)) ** 2
        size = float(torch.linalg.matrix_norm(self.rows, 2)) ** 2 if self.filters else 1.0
        self.step = 1 / (2 * bend * max(size, 1e-12) + self.ridge)
        self.beside_step = 1 / (2 * bend * beside)
        self.energy = float(self.rows.square().sum())
        self.gram = self.rows.T @ self.rows

    def probabilities(self, a: Tensor, b: Tensor) -> Tensor:
        score = (self.rows @ a if self.filters else a) + self.covariates @ b
        return score.sigmoid() if score.shape[1] == 1 else score.softmax(1)

    def advance(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return A, b after one projected gradient step, and the basis of the projection."""
        error = self.probabilities(a, b) - self.targets
        slope = (self.rows.T @ error if self.filters else error) + self.ridge * a
        moved = a - self.step * slope
        b = b - self.beside_step * (self.covariates.T @ error)
        if self.filters:
            gram = moved @ moved.T / self.step + 2 * self.tradeoff * self.gram
            basis = principal_subspace(gram, self.rank)[0]
        else:
            stacked = torch.cat(
                [moved / self.step**0.5, (2 * self.tradeoff) ** 0.5 * self.rows], dim=1
            )
            turn = principal_subspace(stacked.T @ stacked, min(self.rank, stacked.shape[1]))[0]
            basis = torch.linalg.qr(stacked @ turn).Q
        return basis @ (basis.T @ moved), b, basis

    def objective(self, a: Tensor, b: Tensor, basis: Tensor) -> float:
        chosen = self.probabilities(a, b)
        if self.targets.shape[1] == 1:
            chosen = torch.where(self.targets > 0.5, chosen, 1 - chosen)
        else:
            chosen = (chosen * self.targets).sum(1)
        inside = self.rows @ basis if self.filters else basis.T @ self.rows
        left = self.energy - float(inside.square().sum())
        loss = -float(chosen.clamp_min(1e-300).log().sum())
        return loss + self.ridge / 2 * float(a.square().sum()) + self.tradeoff * left

    def solve(self, most: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor, list[float]]:
        a = self.rows.new_zeros(len(self.gram if self.filters else self.rows), self.width)
        b = self.rows.new_zeros(self.covariates.shape[1], self.width)
        before, momentum, history = (a, b), 1.0, [float("inf")]
        for _ in range(most):
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = (momentum - 1) / following
            start = (a + ahead * (a - before[0]), b + ahead * (b - before[1]))
            new = self.advance(*start)
            if (value := self.objective(*new)) > history[-1]:
                following, new = 1.0, self.advance(a, b)
                value = self.objective(*new)
            before, momentum = (a, b), following
            a, b, basis = new
            history.append(value)
            if history[-2] - value <= tolerance * abs(value):
                break
        return a, b, basis, history[1:]

    @property
    def width(self) -> int:
        return self.targets.shape[1]


def with_ones(covariates: Any, count: int) -> Tensor:
    """Return `[1; z]` (n, 1 + c). Raises InputError for covariates of other rows."""
    ones = torch.ones(count, 1, dtype=torch.float64)
    if covariates is None:
        return ones
    given = np.asarray(covariates, dtype=np.float64)
    if not len(given) == count or not np.isfinite(given).all():
        raise InputError(
            f"covariates {given.shape} of {count} rows; expected finite numbers (n, c) or (n,)"
        )
    return torch.cat([ones, to_tensor(given.reshape(count, -1))], dim=1)
