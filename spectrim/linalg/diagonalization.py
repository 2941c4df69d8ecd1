"""Diagonal forms of non-normal matrices, by a small perturbation of bounded size.

    min_E log ||V^-1||_F,    A + E = V diag(l) V^-1,    ||E||_2 = eps,    ||v_i|| = 1

A dense stable state matrix, as of HiPPO or of balanced truncation, becomes a diagonal scan with
a stated error: for `A + A^T <= -I` and eps < 1/2 the transfer function changes by at most
`||C|| ||B|| 4 eps / (1 - 2 eps)` at any frequency. Each step costs O(n^3).

Yu et al., 2024, arXiv:2310.01698.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError

LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Diagonalization:
    """`A + E = V diag(l) V^-1`: eigenvalues (n,), vectors and inverse (n, n), complex, and the
    perturbation E (n, n), real."""

    eigenvalues: Tensor
    vectors: Tensor
    inverse: Tensor
    perturbation: Tensor

    @property
    def condition(self) -> float:
        return float(torch.linalg.cond(self.vectors))


def perturb_then_diagonalize(
    matrix: Tensor, eps: float, steps: int = 150, seed: int = 0
) -> Diagonalization:
    """Return the diagonal form of A + E, `||E||_2 = eps`, with the best V of `steps` of Adam.

    steps=0 leaves E random; eps=0 leaves A as it is. Raises InputError for a matrix that is not
    square, or a negative eps.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or eps < 0:
        raise InputError(
            f"a matrix of shape {tuple(matrix.shape)} with eps={eps:g}; expected a square "
            "matrix and eps >= 0"
        )
    matrix = matrix.detach().double()
    noise = torch.Generator().manual_seed(seed)
    draw = torch.randn(matrix.shape, generator=noise, dtype=torch.float64).to(matrix.device)
    draw.requires_grad_()
    optimizer = torch.optim.Adam([draw], lr=LEARNING_RATE)
    best, least = torch.zeros_like(matrix), torch.inf
    for step in range(steps + 1 if eps else 0):
        perturbation = eps * draw / torch.linalg.matrix_norm(draw, 2)
        vectors = torch.linalg.eig(matrix + perturbation).eigenvectors
        loss = torch.linalg.inv(vectors).abs().square().sum().log() / 2
        if loss.item() < least:
            best, least = perturbation.detach(), loss.item()
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    values, vectors = torch.linalg.eig(matrix + best)
    return Diagonalization(values, vectors, torch.linalg.inv(vectors), best)
