"""Spectral-sphere mixing: `H = J + E U diag(s) V^T E^T`, with sums 1 and spectral norm 1.

Mixes n residual streams (hyper-connections). J = 11^T / n averages them, E (n, n - 1) is an
orthonormal basis of the complement of 1, U and V are Cayley maps of skew matrices, |s| < 1. All
rows and columns sum to 1 and no stream combination grows, so products over any number of layers
stay bounded. Unlike doubly stochastic mixings, H has negative entries, and products of it do
not average the streams away. Cost: two solves of size n - 1 per token.

The layer itself is that of the package hyper-connections (extra `nn`), whose hook takes this
constraint; pre- and post-weights start at sigmoid(+-1) and 2 sigmoid(+-1), + for the own
stream. The hook has one learned scale for U, V and s, where the paper has three. Source: 2026,
arXiv:2603.20896; hyper-connections: arXiv:2409.19606, doubly stochastic: arXiv:2512.24880.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.errors import InputError

REFERENCE = "Spectral-sphere-constrained hyper-connections, 2026, arXiv:2603.20896"


def spectral_sphere(generators: Tensor) -> Tensor:
    """Return mixings H (..., n, n) from unconstrained generators z (..., n - 1, n - 1).

    s = tanh(z_ii); the skew matrices of U and V hold tanh(z_ij) and tanh(z_ji), i < j.
    """
    bounded = generators.to(torch.promote_types(generators.dtype, torch.float32)).tanh()
    left, right = _cayley(bounded.triu(1)), _cayley(bounded.tril(-1).mT)
    scales = bounded.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    basis = _helmert(bounded)
    mixing = basis @ (left * scales) @ right.mT @ basis.mT + 1 / len(basis)
    return mixing.to(generators.dtype)


def _cayley(upper: Tensor) -> Tensor:
    """Return the orthogonal `(I + A)^-1 (I - A)`, A = upper - upper^T."""
    skew = upper - upper.mT
    unit = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(unit + skew, unit - skew)


def _helmert(like: Tensor) -> Tensor:
    """Return the basis (n, n - 1) whose column k is (1, ..., 1, -k, 0, ..., 0), normalized."""
    n = like.shape[-1] + 1
    counts = torch.arange(1, n, dtype=like.dtype, device=like.device)
    ones = torch.ones(n, n - 1, dtype=like.dtype, device=like.device)
    columns = ones.triu() - torch.diag(counts, -1)[:, :-1]
    return columns / (counts * (counts + 1)).sqrt()


class SpectralSphere(nn.Module):
    """Map logits Z (..., n, n) to mixings (..., n, n): the generators are `E^T Z E`.

    It has no parameters and serves as `residual_mix_constraint_fn`. gain multiplies the
    diagonal of the generators: the package starts at Z = I, and tanh(4) = .9993 keeps H at I.
    """

    def __init__(self, gain: float = 4.0):
        super().__init__()
        self.gain = gain

    def forward(self, logits: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        basis = _helmert(wide[..., :-1, :-1])
        generators = basis.mT @ wide @ basis
        unit = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        mixing = spectral_sphere(generators * (1 + (self.gain - 1) * unit))
        return mixing.to(logits.dtype)

    def extra_repr(self) -> str:
        return f"gain={self.gain:g}"


MODULE = SpectralSphere


def hyper_connection(
    branch: nn.Module, dim: int, streams: int = 4, layer: int = 0, gain: float = 4.0
) -> nn.Module:
    """Return a hyper-connection around `branch` (..., dim) that mixes on the sphere.

    It maps (batch * streams, ..., dim), streams fastest, to the same shape. layer: its index,
    which names its own stream (modulo `streams`). Raises InputError without the package.
    """
    try:
        from hyper_connections import ManifoldConstrainedHyperConnections as Connection
    except ImportError as error:
        raise InputError(
            f"hyper-connections is not installed ({error}): pip install 'spectrim[nn]'"
        ) from error
    hook = SpectralSphere(gain)
    options = {"dim": dim, "layer_index": layer, "residual_mix_constraint_fn": hook}
    connection = Connection(streams, branch=branch, **options)
    with torch.no_grad():
        for weights in (connection.static_alpha[:, 0], connection.static_beta):
            weights.fill_(-1)
            weights[layer % streams] = 1
    return connection


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return SpectralSphere(), (torch.randn(2, 3, 4, 4, requires_grad=True),)


def violation(module: nn.Module, logits: Tensor) -> float:
    """Return the largest deviation of sums and spectral norm from 1."""
    mixing = module(logits).detach()
    norms = torch.linalg.matrix_norm(mixing, 2)
    return max(float((x - 1).abs().max()) for x in (mixing.sum(-1), mixing.sum(-2), norms))
