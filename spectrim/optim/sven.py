"""`theta <- theta - lr J^+ R`: Gauss-Newton on the residuals of a batch, J (B, P) truncated.

    K = J J^T = U diag(l) U^T,    J^+ R = J^T U_k diag(1 / l_k) U_k^T R

R holds one residual per example and J its derivative by all parameters. Only the k largest
singular values of J above `rtol` times the largest are inverted. The Gram matrix K (B, B) in
float64 gives the same step as an SVD of J. With more parameters than examples a linear model
interpolates the batch in one step of rate 1, with the least change; with fewer it is the
least-squares step. For signed residuals of a regression; a positive loss as residual halves
the step.

Memory: J, B x P numbers: for models of some thousand parameters. Mini-batches are fitted one
by one, so rates of .1 to .3 are usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectrim.errors import InputError, NumericalError

REFERENCE = "2026, arXiv:2604.01279"
NEEDS_RESIDUALS = True

Residuals = Callable[[nn.Module, Any], Tensor]
"""Takes model and batch, returns the residual (B,) of every example."""


class Sven(Optimizer):
    """rank_fraction: k as a share of B; group: examples whose residuals are averaged into one
    row; all parameter groups are stepped at their own rates."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        rank_fraction: float = 0.5,
        rtol: float = 1e-3,
        group: int = 1,
    ):
        if not 0 < rank_fraction <= 1 or rtol < 0 or group < 1:
            raise InputError(
                "sven needs 0 < rank_fraction <= 1, rtol >= 0 and group >= 1, got "
                f"{rank_fraction}, {rtol} and {group}"
            )
        self.rank_fraction, self.rtol, self.rows_per_residual = rank_fraction, rtol, group
        super().__init__(params, {"lr": lr})

    def step(  # type: ignore[override]
        self, model: nn.Module, residuals: Residuals, batch: Any
    ) -> Tensor:
        """Take one step and return the mean square of the residuals before it.

        Raises NumericalError if a residual is not finite.
        """
        with torch.enable_grad():
            values = residuals(model, batch)
            rows = values.view(-1, self.rows_per_residual).mean(1)
            params = [p for g in self.param_groups for p in g["params"]]
            jacobian = _jacobian(rows, params)
        if not bool(rows.isfinite().all()):
            raise NumericalError("a residual is not finite; check the model, or lower lr")
        weights = solve(torch.cat(jacobian, 1), rows.detach(), self.rank_fraction, self.rtol)
        self._apply(dict(zip(params, jacobian, strict=True)), weights)
        return values.detach().square().mean()

    @torch.no_grad()
    def _apply(self, jacobian: dict[Tensor, Tensor], weights: Tensor) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                step = (weights.to(p.dtype) @ jacobian[p]).view_as(p)
                p.add_(step, alpha=-group["lr"])


def solve(jacobian: Tensor, rows: Tensor, fraction: float, rtol: float) -> Tensor:
    """Return c (B,) of the step `J^T c`, in float64."""
    jacobian = jacobian.double()
    values, vectors = torch.linalg.eigh(jacobian @ jacobian.T)
    rank = max(1, round(fraction * len(rows)))
    kept = values[-rank:] > rtol**2 * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    inverse = torch.where(kept, 1 / values[-rank:], 0.0)
    chosen = vectors[:, -rank:]
    return chosen @ (inverse * (chosen.T @ rows.double()))


def _jacobian(rows: Tensor, params: list[Tensor]) -> list[Tensor]:
    """Return d rows / d parameter as (B, numel) for each, by one batched backward pass."""
    unit = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    found = torch.autograd.grad(
        rows, params, unit, is_grads_batched=True, allow_unused=True, materialize_grads=True
    )
    return [gradient.reshape(len(rows), -1) for gradient in found]


OPTIMIZER = Sven


def state_bytes(rows: int, columns: int) -> int:
    """Return 0: nothing is kept between steps."""
    return 0
