"""AdamW in other coordinates, `W' = Q_g^T W Q_x`: eigenbases of calibration covariances.

    g' = Q_g^T g Q_x,    W' <- AdamW(W', g'),    W = Q_g W' Q_x^T,
    C_g = Q_g diag Q_g^T,   C_x = Q_x diag Q_x^T

Adam gives every coordinate a step of its own size, which is right where the loss's curvature
is diagonal. In these coordinates its Kronecker approximation `C_x (x) C_g` is, as in SOAP,
with the bases known from the calibration and fixed: no statistics are collected while
training. Parameters without a rotation are stepped as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from spectrim.optim._state import loss_of

REFERENCE = "after SOAP, Vyas et al., 2024, arXiv:2409.11321, with fixed bases"
NEEDS_COVARIANCES = True
REDUCES_TO: tuple[str, dict[str, Any]] = ("AdamW", {})


@dataclass(frozen=True)
class Rotation:
    """Orthogonal left (m, m) and right (n, n) for a parameter (m, n); None for the identity."""

    left: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, outputs: Tensor | None, inputs: Tensor | None) -> Rotation:
        """Return the eigenbases of covariances (m, m) and (n, n), in float32."""
        return cls(*(None if c is None else eigenvectors(c) for c in (outputs, inputs)))

    def into(self, tensor: Tensor) -> Tensor:
        tensor = tensor if self.left is None else self.left.T @ tensor
        return tensor if self.right is None else tensor @ self.right

    def back(self, tensor: Tensor) -> Tensor:
        tensor = tensor if self.left is None else self.left @ tensor
        return tensor if self.right is None else tensor @ self.right.T


def eigenvectors(covariance: Tensor) -> Tensor:
    """Return the eigenvectors (n, n) in float32, one per column, computed in float64."""
    return torch.linalg.eigh(covariance.double()).eigenvectors.float()


class KfacAdamW(AdamW):
    """rotations: by parameter; they are given anew when a state is loaded, not part of it."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        rotations: Mapping[Tensor, Rotation] | None = None,
    ):
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)
        self.rotations = dict(rotations or {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = loss_of(closure)
        with self._rotated():
            super().step()
        return loss

    @contextmanager
    def _rotated(self) -> Iterator[None]:
        """Rotate parameters in place; gradients are replaced and put back untouched."""
        turned = [(p, p.grad, r) for p, r in self.rotations.items() if p.grad is not None]
        for parameter, gradient, rotation in turned:
            parameter.grad = rotation.into(gradient).contiguous()
            parameter.copy_(rotation.into(parameter))
        try:
            yield
        finally:
            for parameter, gradient, rotation in turned:
                parameter.copy_(rotation.back(parameter))
                parameter.grad = gradient


OPTIMIZER = KfacAdamW


def state_bytes(rows: int, columns: int) -> int:
    """Return AdamW's bytes; the bases, held beside them, are `4 (rows^2 + columns^2)` more."""
    return 8 * rows * columns + 4
