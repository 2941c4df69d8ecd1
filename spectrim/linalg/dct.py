"""Fixed orthogonal bases of a space: the discrete cosine transform and its controls.

    dct:  Q[j, k] = c_k cos(pi k (2 j + 1) / (2 n)),   c_0 = sqrt(1 / n),   c_k = sqrt(2 / n)

`X @ Q` is the orthonormal DCT-II of the rows of X. All of the bases are orthogonal, known from
their size alone, and therefore never stored or sent.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from spectrim.errors import InputError

Basis = Literal["dct", "hadamard", "random", "identity"]


def orthogonal_basis(name: Basis, size: int) -> Tensor:
    """Return the basis (size, size) in float64, one vector per column. Raises InputError."""
    if name == "dct":
        return _cosines(size)
    if name == "hadamard":
        return _hadamard(size)
    if name == "random":
        generator = torch.Generator().manual_seed(size)
        drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(drawn).Q
    if name == "identity":
        return torch.eye(size, dtype=torch.float64)
    raise InputError(f"basis '{name}': expected dct, hadamard, random or identity")


def _cosines(size: int) -> Tensor:
    places = 2 * torch.arange(size, dtype=torch.float64)[:, None] + 1
    angles = math.pi / (2 * size) * places * torch.arange(size, dtype=torch.float64)
    basis = (2 / size) ** 0.5 * angles.cos()
    basis[:, 0] = size**-0.5
    return basis


def _hadamard(size: int) -> Tensor:
    if size & (size - 1):
        raise InputError(
            f"basis 'hadamard' needs a size that is a power of two, got {size}; use 'dct'"
        )
    basis = torch.ones(1, 1, dtype=torch.float64)
    while len(basis) < size:
        basis = torch.cat([torch.cat([basis, basis], 1), torch.cat([basis, -basis], 1)])
    return basis / size**0.5
