"""Self-expression under a norm structured by labels that it estimates itself.

    min_C  tr((I - C) G (I - C)^T) + lam ||C||^2 + beta tr(Q^T L Q),   diag C = 0

G (n, n) is the Gram matrix of the rows, Q (n, k) the one-hot labels of a spectral clustering of
C, and L the Laplacian of `W = (|C| + |C|^T)^(1/2)` by entries, so that `tr(Q^T L Q)` is the sum
of W over all pairs of different clusters. For given labels its concave terms are bounded by
quadratic ones at the present C, which leaves one ridge regression a row, with penalties of its
own: the objective does not rise. Over a factor of G of rank r a step costs O(n^2 r^2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.estimators._encoder import Encoder
from spectrim.estimators._sklearn import Array

ROUNDS = 10
SETTLED = 1e-3
"""Relative change of the objective at which the rounds end."""
ROUNDING = 1e-12
"""Eigenvalues below this share of the largest are none."""
SMOOTHING = 1e-4
"""Of the largest entry of |C|: smaller entries are penalized alike."""
CHUNK = 32
"""Rows solved at once."""


def structured_norm(coefficients: Tensor, labels: Tensor) -> Tensor:
    """Return `tr(Q^T L Q)`: the sum of W over pairs of rows with different labels (n,)."""
    size = coefficients.abs() + coefficients.abs().T
    return (size.sqrt() * (labels[:, None] != labels)).sum()


def express_error(gram: Tensor, coefficients: Tensor, lam: float) -> Tensor:
    """Return `tr((I - C) G (I - C)^T) + lam ||C||^2`."""
    rest = torch.eye(len(gram), dtype=gram.dtype) - coefficients
    return ((rest @ gram) * rest).sum() + lam * coefficients.square().sum()


def structured_step(
    gram: Tensor, coefficients: Tensor, labels: Tensor, lam: float, beta: float
) -> Tensor:
    """Return C (n, n), zero on the diagonal, that lowers the objective for these labels.

    `sqrt(a + b)` is at most its tangent at the present a and b, and |c| at most
    `(c^2 / |c_0| + |c_0|) / 2`.
    """
    size = coefficients.abs()
    tiny = torch.finfo(size.dtype).tiny
    size = size.clamp_min(max(SMOOTHING * float(size.max()), tiny))
    bound = beta / (2 * (size + size.T).sqrt() * size)
    return penalized_expression(gram, lam + bound * (labels[:, None] != labels))


def penalized_expression(gram: Tensor, penalties: Tensor) -> Tensor:
    """Solve `min_c ||f_i - F^T c||^2 + sum_j P_ij c_j^2, c_i = 0` for each row f_i of F (n, r),
    `G = F F^T`; return all c (n, n).
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > ROUNDING * values.max()
    factor = vectors[:, kept] * values[kept].sqrt()
    free = (1 / penalties).fill_diagonal_(0)
    unit = torch.eye(factor.shape[1], dtype=gram.dtype)
    parts = []
    for rows, weights in zip(factor.split(CHUNK), free.split(CHUNK), strict=True):
        normal = (factor.T * weights.unsqueeze(1)) @ factor + unit
        codes = torch.linalg.solve(normal, rows.unsqueeze(2)).squeeze(2)
        parts.append(weights * (codes @ factor.T))
    return torch.cat(parts)


@dataclass(frozen=True)
class LastStage:
    """Alternate labels, coefficients and, with one, a step of the encoder.

    structure: beta, in shares of the fit's objective at the start. label: labels (n,) of C.
    """

    lam: float
    structure: float
    label: Callable[[Tensor], Array]

    def run(
        self, gram: Tensor, start: Tensor, encoder: Encoder | None
    ) -> tuple[Tensor, list[float]]:
        """Return C, and the objective after each round for the labels of that round."""
        coefficients, history, beta = start, list[float](), 0.0
        for _ in range(ROUNDS):
            labels = torch.from_numpy(self.label(coefficients)).long()
            if not history:
                size = float(structured_norm(coefficients, labels)) or 1.0
                error = float(express_error(gram, coefficients, self.lam))
                beta = self.structure * error / size
            coefficients = structured_step(gram, coefficients, labels, self.lam, beta)
            if encoder is not None:
                encoder.step(coefficients)
                gram = encoder.gram()
            norm = beta * structured_norm(coefficients, labels)
            history.append(float(express_error(gram, coefficients, self.lam) + norm))
            if len(history) > 1 and abs(history[-1] - history[-2]) <= SETTLED * history[-1]:
                break
        return coefficients, history
