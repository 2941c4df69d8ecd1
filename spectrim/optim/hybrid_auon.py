"""`W <- W - lr O / R`, O Newton-Schulz of the Nesterov momentum, R the brake of AuON.

The direction is Muon's without the factor for the shape; the brake on a matrix of norm
sqrt(min(m, n)) is as inert as in `auon`, so this is Muon to within 0.06% for matrices of
64 x 64 or more. One buffer per parameter; the products of Muon.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spectrim.linalg.newton_schulz import orthogonalize
from spectrim.optim._auon import Brake, momentum_bytes
from spectrim.optim.auon import AuON

REFERENCE = "2025, arXiv:2509.24320"


class HybridAuON(AuON):
    def __init__(
        self,
        params: Any,
        lr: float = 0.05,
        momentum: float = 0.95,
        gamma: float = 1.5,
        brake: Brake = "published",
        weight_decay: float = 0.0,
        adamw_ratio: float = 0.1,
    ):
        super().__init__(params, lr, momentum, gamma, brake, weight_decay, adamw_ratio)

    def direction(self, gradient: Tensor) -> Tensor:
        return orthogonalize(gradient)


OPTIMIZER = HybridAuON
state_bytes = momentum_bytes
