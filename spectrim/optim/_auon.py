"""The brake of AuON: `R = sqrt(mean cosh^2(gamma N))` of a normalized step N."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.optim._matrix import Group
from spectrim.optim._state import state_dtype

Brake = Literal["published", "unit_rms"]


def check_brake(name: Brake) -> None:
    if name not in ("published", "unit_rms"):
        raise InputError(f"brake '{name}': expected published or unit_rms")


def nesterov(state: dict[str, Tensor], gradient: Tensor, beta: float) -> Tensor:
    """Return `(1 - beta) g + beta m` after `m <- beta m + (1 - beta) g`."""
    gradient = gradient.to(state_dtype(gradient))
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    state["momentum"].lerp_(gradient, 1 - beta)
    return gradient.lerp(state["momentum"], beta)


def brake(step: Tensor, group: Group) -> Tensor:
    """Return R, a scalar.

    As published N has norm 1, so entries are tiny and `R^2 <= 1 + sinh^2(gamma) / (m n)`.
    "unit_rms" takes N with entries of mean square 1, and divides by cosh(gamma).
    """
    unit = step / (step.norm() + 1e-7)
    gamma = group["gamma"]
    if group["brake"] == "published":
        return (gamma * unit).cosh().square().mean().sqrt()
    spread = (gamma * step.numel() ** 0.5 * unit).clamp(-40, 40)
    return spread.cosh().square().mean().sqrt() / math.cosh(gamma)


def momentum_bytes(rows: int, columns: int) -> int:
    """Return the bytes of one momentum."""
    return 4 * rows * columns
