"""Sparse dictionaries: every row of a matrix as a sum of a few atoms.

    Y ~ A D,   min ||Y - A D||_F,   at most s non-zeros in each row of A

Y (n, m) data, D (k, m) dictionary, A (n, k) coefficients. Codes by orthogonal matching
pursuit (Pati et al., 1993), dictionaries by K-SVD (Aharon et al., 2006), which improves one
atom with its coefficients at a time, or orthonormal ones, for which the best code keeps the
s largest products and the best dictionary is a Procrustes problem (Lesage et al., 2005).
All work in the dtype of the data, on all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.psd import check_finite


@dataclass(frozen=True)
class SparseCode:
    """coefficients (n, k), dictionary (k, m); errors: ||Y - A D||_F^2 after each round."""

    coefficients: Tensor
    dictionary: Tensor
    errors: tuple[float, ...]


def keep_largest(matrix: Tensor, nonzeros: int) -> Tensor:
    """Return the matrix (n, k) with all but the `nonzeros` largest entries of each row set to
    0.
    """
    kept = matrix.abs().topk(nonzeros, dim=1).indices
    return torch.zeros_like(matrix).scatter_(1, kept, matrix.gather(1, kept))


def omp(data: Tensor, dictionary: Tensor, nonzeros: int) -> Tensor:
    """Return coefficients (n, k) with at most `nonzeros` per row by orthogonal matching
    pursuit.

    Takes the atom that correlates most with the residual, then solves for all atoms taken.
    data (n, m), dictionary (k, m) of atoms of length one. With the taken atoms' Gram matrix
    G = L L^T each row carries P = L^{-1}, which grows by one line per step:

        h = P g,   P <- [[P, 0], [-h^T P, 1] / sqrt(1 - |h|^2)],   g = the new atom's column
    """
    gram = dictionary @ dictionary.T
    left = data @ dictionary.T
    rows, atoms = left.shape
    every = torch.arange(rows, device=data.device)
    taken = torch.empty(rows, nonzeros, dtype=torch.long, device=data.device)
    factor = data.new_zeros(rows, nonzeros, nonzeros)
    result = data.new_zeros(rows, atoms)
    free = torch.ones_like(left, dtype=torch.bool)
    for step in range(nonzeros):
        best = left.abs().masked_fill(~free, -1.0).argmax(1)
        free[every, best] = False
        taken[:, step] = best
        line = _next_line(factor[:, :step, :step], gram, taken[:, : step + 1])
        factor[:, step, : step + 1] = line
        amount = line[:, -1] * left[every, best]
        change = torch.zeros_like(result).scatter_(
            1, taken[:, : step + 1], amount[:, None] * line
        )
        result += change
        left -= change @ gram
    return result


def _next_line(factor: Tensor, gram: Tensor, taken: Tensor) -> Tensor:
    """Return the next row (n, t + 1) of each inverse Cholesky factor (n, t, t).

    It is 0 for an atom that the taken ones already span.
    """
    newest = taken[:, -1:]
    column = gram[taken[:, :-1], newest]
    products = (factor @ column[:, :, None]).squeeze(-1)
    own = gram[newest, newest].squeeze(1)
    rest = own - products.square().sum(1)
    independent = rest > own * torch.finfo(gram.dtype).eps ** 0.75
    scale = torch.where(independent, rest.clamp_min(torch.finfo(gram.dtype).tiny).rsqrt(), 0.0)
    line = -(products[:, None, :] @ factor).squeeze(1)
    return torch.cat([line, line.new_ones(len(line), 1)], 1) * scale[:, None]


def ksvd(
    data: Tensor, atoms: int, nonzeros: int, rounds: int = 60, power_iterations: int = 8
) -> SparseCode:
    """Run K-SVD from randomly chosen (seed 0) rows of the data.

    A round codes every row again, keeping the old code where that is better, then improves
    the atoms one by one by power iteration on the residual of the others: the error never
    rises. Memory n s^2. Raises InputError for sizes that do not fit, NumericalError for
    non-finite data.
    """
    _check(data, atoms, nonzeros, rounds)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    dictionary = _unit_rows(data[order[:atoms].to(data.device)])
    coefficients = omp(data, dictionary, nonzeros)
    errors = []
    for done in range(rounds):
        if done:
            coefficients = _better_rows(data, dictionary, coefficients, nonzeros)
        residual = data - coefficients @ dictionary
        for atom in range(atoms):
            _improve(atom, dictionary, coefficients, residual, power_iterations)
        errors.append(float(residual.square().sum()))
    return SparseCode(coefficients, dictionary, tuple(errors))


def _better_rows(data: Tensor, dictionary: Tensor, old: Tensor, nonzeros: int) -> Tensor:
    new = omp(data, dictionary, nonzeros)
    before = (data - old @ dictionary).square().sum(1)
    after = (data - new @ dictionary).square().sum(1)
    return torch.where((after < before)[:, None], new, old)


def _improve(
    atom: int, dictionary: Tensor, coefficients: Tensor, residual: Tensor, iterations: int
) -> None:
    """Move one atom and its non-zero coefficients toward the best rank-one term, in place.

    An atom that no row uses becomes the direction of the worst row.
    """
    users = coefficients[:, atom].nonzero().squeeze(1)
    if not len(users):
        worst = residual[residual.square().sum(1).argmax()]
        if bool(worst.any()):
            dictionary[atom] = worst / worst.norm()
        return
    direction, amounts = dictionary[atom], coefficients[users, atom]
    target = residual[users].addr(amounts, direction)
    for _ in range(iterations):
        direction = torch.mv(target.T, amounts)
        direction = direction / direction.norm().clamp_min(torch.finfo(target.dtype).tiny)
        amounts = torch.mv(target, direction)
    dictionary[atom] = direction
    coefficients[users, atom] = amounts
    residual[users] = target.addr(amounts, direction, alpha=-1)


def orthogonal(data: Tensor, atoms: int, nonzeros: int, rounds: int = 60) -> SparseCode:
    """Return orthonormal atoms, `D D^T = I`, started from the data's singular directions.

        A = the s largest entries of each row of Y D^T,   D = U V^T for A^T Y = U S V^T

    Both steps are exact minimizers: the error never rises. One small SVD per round. Raises
    InputError for sizes that do not fit, NumericalError for non-finite data.
    """
    _check(data, atoms, nonzeros, rounds)
    if atoms > data.shape[1]:
        raise InputError(f"{atoms} orthonormal atoms do not fit in {data.shape[1]} dimensions")
    _, _, directions = torch.linalg.svd(data, full_matrices=False)
    dictionary = directions[:atoms]
    errors = []
    coefficients = keep_largest(data @ dictionary.T, nonzeros)
    for _ in range(rounds):
        u, _, v = torch.linalg.svd(coefficients.T @ data, full_matrices=False)
        dictionary = u @ v
        coefficients = keep_largest(data @ dictionary.T, nonzeros)
        errors.append(float((data - coefficients @ dictionary).square().sum()))
    return SparseCode(coefficients, dictionary, tuple(errors))


def _unit_rows(matrix: Tensor) -> Tensor:
    norms = matrix.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, matrix / norms, 0.0)


def _check(data: Tensor, atoms: int, nonzeros: int, rounds: int) -> None:
    check_finite(data, "data")
    if not 1 <= nonzeros <= atoms <= len(data) or rounds < 1:
        raise InputError(
            f"{nonzeros} non-zeros of {atoms} atoms for {len(data)} rows in {rounds} rounds: "
            "expected 1 <= non-zeros <= atoms <= rows and at least one round"
        )
