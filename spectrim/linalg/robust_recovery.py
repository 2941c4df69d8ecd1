"""Low-rank recovery under gross outliers: subgradient steps on the l1 loss from a small start.

    min_U  (1/m) sum_i | y_i - <A_i, U U^T> |        (U V^T where the matrix is not symmetric)

    S = (1/m) sum_i sign(<A_i, U U^T> - y_i) A_i,    U <- U - eta_0 rho^t S U / ||S||_F

from a start of size alpha in the leading directions of `(1/m) sum_i sign(y_i) A_i`. With enough
measurements any fraction of outliers below one half is tolerated, and the rank k of U may
exceed the true one: surplus directions stay of the size of the start. Steps are
multiplicative, so `y -> c y` scales the result by c.

J. Ma, S. Fattahi, 2022, arXiv:2202.08788 (SubGM); step sizes as measured on Gaussian
measurements, since the paper states its own up to constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.measurements import Measurements
from spectrim.linalg.psd import check_finite, descending_eigh


@dataclass(frozen=True)
class SubgradientOptions:
    """init_scale: alpha, in roots of the median |y|; step: eta_0; decay: rho per step."""

    init_scale: float = 1e-3
    step: float = 0.5
    decay: float = 0.985
    steps: int = 900


@dataclass(frozen=True)
class Recovery:
    """left (p, k), right (q, k) with `X ~ left right^T`, equal where the matrix is symmetric;
    history: the mean absolute residual before each step, then the last.
    """

    left: Tensor
    right: Tensor
    history: tuple[float, ...]

    @property
    def matrix(self) -> Tensor:
        return self.left @ self.right.T


def robust_recover(
    operator: Measurements, y: Tensor, max_rank: int, options: SubgradientOptions | None = None
) -> Recovery:
    """Recover a matrix of rank at most `max_rank` from y (m,), of which less than half may be
    arbitrary.

    A symmetric operator is taken to measure a positive semi-definite matrix. Cost: one forward
    and one adjoint a step. Raises InputError for an impossible rank.
    """
    options = options or SubgradientOptions()
    if not 1 <= max_rank <= min(operator.shape):
        raise InputError(
            f"max_rank {max_rank} of a matrix {operator.shape}; expected 1 to "
            f"{min(operator.shape)}"
        )
    check_finite(y, "measurements")
    y = y.double()
    left, right = _start(operator, y, max_rank, options.init_scale)
    history, length = [], options.step
    for _ in range(options.steps):
        residual = operator.forward(left, right) - y
        history.append(float(residual.abs().mean()))
        slope = operator.adjoint(residual.sign())
        size = float(torch.linalg.matrix_norm(slope))
        if size == 0:
            break
        moved = left - length / size * (slope @ right)
        right = moved if operator.symmetric else right - length / size * (slope.T @ left)
        left, length = moved, length * options.decay
    history.append(float((operator.forward(left, right) - y).abs().mean()))
    return Recovery(left, right, tuple(history))


def _start(operator: Measurements, y: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the spectral start of size `scale`, from signs alone."""
    signs = operator.adjoint(y.sign())
    size = scale * float(y.abs().median().clamp_min(torch.finfo(y.dtype).tiny)) ** 0.5
    if operator.symmetric:
        values, vectors = descending_eigh(signs)
        factor = vectors[:, :rank] * values[:rank].sqrt()
        factor = size * factor / torch.linalg.matrix_norm(factor).clamp_min(1e-300)
        return factor, factor
    u, s, vh = torch.linalg.svd(signs, full_matrices=False)
    root = s[:rank].sqrt() * size / s[:rank].sum().sqrt().clamp_min(1e-300)
    return u[:, :rank] * root, vh[:rank].T * root
