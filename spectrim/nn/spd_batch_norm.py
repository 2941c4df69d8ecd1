"""SPD batch normalization: `X -> Exp_B(T_{I->B}(s / sqrt(var + eps) T_{G->I}(Log_G X)))`.

G is the batch's mean (one fixed-point step from the arithmetic mean; the running one moves
along the geodesic), var the mean square of the centered tangents, B and s are learned. The
geometry is the generalized Bures-Wasserstein one: a learned SPD matrix M and a power p map X to
`Y = M^-1/2 X^p M^-1/2`, where `d(X, Z)^2 = d_BW(Y_X, Y_Z)^2 / p^2`; p -> 0 is the log-Euclidean
metric. For n = 1 and M = 1 this is batch normalization of X^{p/2}, and of log X as p -> 0.

B and M are stored as factors, `B = F F^T`: they are semi-definite under any optimizer, and SGD
on F is, to first order, Riemannian SGD of this geometry. The output is `(I + L) B (I + L)`,
2 L the tangent in B's frame, so it is semi-definite, and singular only where I + L is.
The released code takes the variance of the uncentered batch about I; here the batch is centered
first. It starts its SPD parameters at I + 1e-7 diag(1, ..., n), since the gradients of its
eigenvectors are undefined at I; here B and M start at I, where gradients are exact. Everything
is computed in float64. Cost: about six `eigh` per matrix, O(n^3).

The published gains over other normalizations have not been found at small scale: see `nn.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.linalg.bures_transport import from_chart, to_chart, transport_to_identity
from spectrim.linalg.spd import (
    bures_wasserstein_geodesic,
    bures_wasserstein_log,
    bures_wasserstein_mean,
)

REFERENCE = "Wang et al., 2025, arXiv:2504.00660 (GBWBN)"


class GBWBatchNorm(nn.Module):
    """Normalize SPD matrices (..., n, n), over all leading dimensions.

    power: p, of either sign. momentum: weight of a batch in the running statistics.
    learn_metric=False keeps M = I. Raises InputError for matrices of another size, or p = 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        n: int,
        power: float = 1.0,
        momentum: float = 0.1,
        eps: float = 1e-5,
        learn_metric: bool = True,
    ):
        super().__init__()
        if power == 0:
            raise InputError("power=0; expected another number: .01 is close to log-Euclidean")
        self.n, self.power, self.momentum, self.eps = n, power, momentum, eps
        self.weight_factor = nn.Parameter(torch.eye(n))
        self.metric_factor = nn.Parameter(torch.eye(n)) if learn_metric else None
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("running_mean", torch.eye(n))
        self.register_buffer("running_var", torch.ones(()))

    @property
    def weight(self) -> Tensor:
        """Return B (n, n), float64, the mean of normalized batches."""
        return _square(self.weight_factor)

    def forward(self, matrices: Tensor) -> Tensor:
        if matrices.shape[-2:] != (self.n, self.n):
            raise InputError(
                f"matrices of shape {tuple(matrices.shape)}; expected (..., {self.n}, {self.n})"
            )
        points = self._chart(matrices.double())
        if self.training:
            mean = bures_wasserstein_mean(points.flatten(0, -3), steps=1)
        else:
            mean = self._chart(self.running_mean.double())
        tangents = transport_to_identity(mean, bures_wasserstein_log(mean, points))
        if self.training:
            squares = tangents.square().sum((-2, -1))
            variance = squares.mean() / (2 * self.power) ** 2
            self._update(mean.detach(), variance.detach())
        else:
            variance = self.running_var.double()
        tangents = self.scale.double() / (variance + self.eps).sqrt() * tangents
        return self._unchart(self._biased(tangents)).to(matrices.dtype)

    def _biased(self, tangents: Tensor) -> Tensor:
        """Return Exp_B of tangents moved from I to B, `(I + L) B (I + L)`.

        `2 L = T_{-1/2}(V)`, because the Lyapunov solution is half of T_{-1/2} applied twice.
        """
        base = self._chart(self.weight)
        solved = transport_to_identity(base, tangents) / 2
        factor = torch.eye(self.n, dtype=base.dtype, device=base.device) + solved
        return factor @ base @ factor

    def _metric(self) -> Tensor | None:
        return None if self.metric_factor is None else _square(self.metric_factor)

    def _chart(self, matrices: Tensor) -> Tensor:
        return to_chart(matrices, self.power, self._metric())

    def _unchart(self, points: Tensor) -> Tensor:
        return from_chart(points, self.power, self._metric())

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        known = self._chart(self.running_mean.double())
        moved = bures_wasserstein_geodesic(known, mean, self.momentum)
        self.running_mean.copy_(self._unchart(moved))
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)

    def extra_repr(self) -> str:
        known = f"{self.n}, power={self.power:g}, momentum={self.momentum:g}"
        return f"{known}, eps={self.eps:g}, learn_metric={self.metric_factor is not None}"


def _square(factor: Tensor) -> Tensor:
    wide = factor.double()
    return wide @ wide.T


MODULE = GBWBatchNorm


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    rows = torch.randn(5, 3, 9)
    return GBWBatchNorm(3, power=0.5), ((rows @ rows.mT / 9).requires_grad_(),)


def violation(module: GBWBatchNorm, matrices: Tensor) -> float:
    """Return by how much outputs or the weight miss being symmetric and positive definite."""
    wrong = [0.0]
    for result in (module(matrices).detach(), module.weight.detach()):
        least = torch.linalg.eigvalsh(result)[..., 0].min()
        wrong += [float((result - result.mT).abs().max()), float(-least)]
    return max(wrong)
