"""Orthogonalize the momentum inside a few cosine columns: `W <- W - lr scale NS(b) P^T`.

    M <- M + G,   S = M Q,   P = Q[:, r longest columns of S],   b = M P,
    M <- M - (1 - mu) b P^T,     NS(b) by Newton-Schulz

One matrix of state, the momentum, in which everything that was left out waits (error
feedback). Newton-Schulz works on (m, r) instead of (m, n), and only b and r indices would
travel between workers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.dct import Basis
from spectrim.linalg.newton_schulz import orthogonalize
from spectrim.optim._matrix import Group, MatrixOptimizer, decay
from spectrim.optim._state import state_dtype
from spectrim.optim._subspace import basis_for, longest, narrow, rank_of, shaped

REFERENCE = "Modoranu et al., 2025, arXiv:2505.17967"
Scale = Literal["spectral", "rms", "dion", "none"]


def scale_of(name: Scale, rows: int, columns: int) -> float:
    """Return the factor for a shape: Muon's, Moonlight's, Dion's or 1. Raises InputError."""
    factors = {
        "spectral": max(1, rows / columns) ** 0.5,
        "rms": 0.2 * max(rows, columns) ** 0.5,
    }
    factors |= {"dion": (rows / columns) ** 0.5, "none": 1.0}
    if name not in factors:
        raise InputError(f"scale '{name}': expected {', '.join(factors)}")
    return factors[name]


class Trion(MatrixOptimizer):
    """rank_fraction: r as a share of the shorter side; momentum: what stays of the chosen."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        rank_fraction: float = 0.25,
        momentum: float = 0.95,
        basis: Basis = "dct",
        scale: Scale = "spectral",
        norm: int = 2,
        weight_decay: float = 0.0,
        adamw_ratio: float = 0.1,
    ):
        scale_of(scale, 1, 1)
        own: Group = {"rank_fraction": rank_fraction, "momentum": momentum, "basis": basis}
        own |= {"scale": scale, "norm": norm, "weight_decay": weight_decay}
        super().__init__(params, lr, adamw_ratio, own)

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, dtype=state_dtype(parameter))
        momentum = narrow(state["momentum"])
        momentum += narrow(gradient)
        basis = basis_for(group["basis"], momentum.shape[1], momentum.dtype, momentum.device)
        projected = momentum if group["basis"] == "identity" else momentum @ basis
        rank = rank_of(group["rank_fraction"], projected)
        indices = longest(projected, rank, group["norm"])
        chosen, back = projected[:, indices], basis[:, indices].T
        momentum -= (1 - group["momentum"]) * chosen @ back
        decay(parameter, group)
        step = shaped(orthogonalize(chosen) @ back, parameter)
        factor = scale_of(group["scale"], *parameter.shape)
        parameter.add_(step, alpha=-group["lr"] * factor)


OPTIMIZER = Trion


def state_bytes(rows: int, columns: int) -> int:
    """Return the bytes of the momentum."""
    return 4 * rows * columns
