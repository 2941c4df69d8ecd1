"""Sparse Bayesian learning with a Kronecker-structured prior: posterior and M-steps.

    x ~ N(0, diag(g_1 (x) ... (x) g_I)),   y = (A_1 (x) ... (x) A_I) x + noise

Factors whose whole grid of columns is one matrix are allowed too. The posterior comes from the
eigenvectors of each `diag(sqrt g_i) A_i^T A_i diag(sqrt g_i)`.

Y. He, G. Joseph, 2023, arXiv:2307.14719.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError

PRUNED = {"am": 1e-2, "svd": 1e-3}
"""Entries of a factor below this share of its largest are set to zero for good."""
AM_ROUNDS, AM_CHANGE = 50, 1e-5
LEAST_NOISE = 1e-10


@dataclass(frozen=True)
class SparseOptions:
    """noise: variance, or None to estimate it; update: "svd" or "am"; rounds at most, and the
    relative change of the mean that ends them.
    """

    noise: float | None = None
    update: str = "svd"
    rounds: int = 150
    tolerance: float = 1e-4


@dataclass(frozen=True)
class SparsePosterior:
    """mean (N_1, ..., N_I); gammas, one (N_i,) a mode; noise variance; history: relative change
    of the mean in each round.
    """

    mean: Tensor
    gammas: tuple[Tensor, ...]
    noise: float
    history: tuple[float, ...]


def solve_kronecker_sbl(
    factors: Sequence[Tensor],
    y: Tensor,
    options: SparseOptions | None = None,
    grid: Sequence[int] | None = None,
) -> SparsePosterior:
    """Estimate a sparse tensor from y (m_1, ..., m_I) and factors (m_i, N_i), float64.

    grid: the shape (N_1, ..., N_I) of the columns where one factor (m, prod N_i) has them all.
    Raises InputError for shapes that do not fit and an unknown update.
    """
    if tuple(y.shape) != tuple(len(a) for a in factors):
        raise InputError(
            f"measurements {tuple(y.shape)} of factors with "
            f"{tuple(len(a) for a in factors)} rows; expected the same"
        )
    options = options or SparseOptions()
    if options.update not in PRUNED:
        raise InputError(f"update {options.update!r}; expected 'am' or 'svd'")
    sizes = tuple(grid) if grid is not None else tuple(a.shape[1] for a in factors)
    columns = math.prod(a.shape[1] for a in factors)
    if math.prod(sizes) != columns:
        raise InputError(f"a grid of shape {sizes} for {columns} columns")
    return _iterate([a.double() for a in factors], y.double(), sizes, options)


def _iterate(
    factors: list[Tensor], y: Tensor, sizes: Sequence[int], options: SparseOptions
) -> SparsePosterior:
    given = options.noise
    gammas = [torch.ones(n, dtype=torch.float64) for n in sizes]
    noise = given if given is not None else 0.1 * float(y.square().mean())
    noise = max(noise, LEAST_NOISE)
    mean, history = torch.zeros(*sizes, dtype=torch.float64), list[float]()
    for _ in range(options.rounds):
        new, variance, degrees = kronecker_posterior(factors, y, gammas, noise)
        history.append(float((new - mean).norm() / new.norm().clamp_min(1e-300)))
        mean = new
        if history[-1] < options.tolerance:
            break
        if given is None:
            left = float((y - _apply(factors, mean, y.shape)).square().sum())
            noise = max((left + noise * degrees) / y.numel(), LEAST_NOISE)
        gammas = m_step(mean.square() + variance, gammas, options.update)
    return SparsePosterior(mean, tuple(gammas), noise, tuple(history))


def m_step(second: Tensor, gammas: list[Tensor], update: str) -> list[Tensor]:
    """Return new gammas (N_i,) from second moments (N_1, ..., N_I), on the current support."""
    support = [gamma.nonzero().flatten() for gamma in gammas]
    inner = second[torch.meshgrid(*support, indexing="ij")].clamp_min(1e-300)
    start = [gamma[kept] for gamma, kept in zip(gammas, support, strict=True)]
    fitted = _rank_one(inner) if update == "svd" else _alternate(inner, start)
    result = []
    for gamma, kept, values in zip(gammas, support, fitted, strict=True):
        pruned = torch.where(values < PRUNED[update] * values.max(), 0.0, values)
        result.append(torch.zeros_like(gamma).index_put_((kept,), pruned))
    return result


def _alternate(second: Tensor, gammas: list[Tensor]) -> list[Tensor]:
    for _ in range(AM_ROUNDS):
        before = outer(gammas)
        for mode in range(len(gammas)):
            others = [torch.ones_like(g) if m == mode else g for m, g in enumerate(gammas)]
            rest = [m for m in range(len(gammas)) if m != mode]
            ratio = second / outer(others)
            gammas[mode] = ratio.mean(rest) if rest else ratio
            if mode < len(gammas) - 1:
                gammas[mode] = gammas[mode] / gammas[mode].norm()
        if float((outer(gammas) - before).norm()) <= AM_CHANGE * float(before.norm()):
            break
    return gammas


def _rank_one(second: Tensor) -> list[Tensor]:
    """Split off the first mode by its leading singular vectors, until one is left."""
    found = []
    while second.dim() > 1:
        u, s, vh = torch.linalg.svd(second.flatten(1), full_matrices=False)
        found.append(u[:, 0].abs())
        second = (s[0] * vh[0].abs()).reshape(second.shape[1:])
    return [*found, second]


def outer(vectors: Sequence[Tensor]) -> Tensor:
    """Return the tensor (N_1, ..., N_I) of all products of entries."""
    result = vectors[0]
    for vector in vectors[1:]:
        result = result.unsqueeze(-1) * vector
    return result


def _multiply(matrices: Sequence[Tensor], tensor: Tensor) -> Tensor:
    """Multiply each mode of a tensor by a matrix."""
    for mode, matrix in enumerate(matrices):
        tensor = torch.tensordot(matrix, tensor, dims=([1], [mode])).movedim(0, mode)
    return tensor


def _apply(factors: Sequence[Tensor], x: Tensor, shape: Sequence[int]) -> Tensor:
    return _multiply(factors, x.reshape([a.shape[1] for a in factors])).reshape(*shape)


def kronecker_posterior(
    factors: list[Tensor], y: Tensor, gammas: list[Tensor], noise: float
) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance (N_1, ..., N_I), and how many entries the data determine."""
    sizes = [len(gamma) for gamma in gammas]
    roots = [g.sqrt() for g in (gammas if len(factors) > 1 else [outer(gammas).flatten()])]
    scaled = [a * root for a, root in zip(factors, roots, strict=True)]
    pairs = [torch.linalg.eigh(b.T @ b) for b in scaled]
    vectors = [q for _, q in pairs]
    shrink = 1 / (1 + outer([values.clamp_min(0) for values, _ in pairs]) / noise)
    seen = _multiply([b.T for b in scaled], y) / noise
    whitened = _multiply(vectors, shrink * _multiply([q.T for q in vectors], seen))
    spread = _multiply([q.square() for q in vectors], shrink)
    root = outer(roots)
    degrees = math.prod(sizes) - float(shrink.sum())
    mean, variance = root * whitened, root.square() * spread
    return mean.reshape(sizes), variance.reshape(sizes), degrees
