"""`W <- W - lr G / R`, G Nesterov momentum, `R = sqrt(mean cosh^2(gamma G / ||G||))`.

    m <- beta m + (1 - beta) g,    G = (1 - beta) g + beta m

One buffer per parameter and no matrix product. The brake R is bounded by
`1 + sinh^2(gamma / sqrt(m n)) <= R^2 <= 1 + sinh^2(gamma) / (m n)`: for gamma = 1.5 and a
matrix of 64 x 64 or more, R is 1 to within 0.06%. As published the method is therefore SGD with
momentum, its rate in units of the gradient, which does not carry over between models.
`brake="unit_rms"` applies the same statistic to entries of unit mean square, where it acts.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spectrim.optim._auon import Brake, brake, check_brake, momentum_bytes, nesterov
from spectrim.optim._matrix import Group, MatrixOptimizer, decay

REFERENCE = "2025, arXiv:2509.24320"


class AuON(MatrixOptimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 0.24,
        momentum: float = 0.95,
        gamma: float = 1.5,
        brake: Brake = "published",
        weight_decay: float = 0.0,
        adamw_ratio: float = 0.01,
    ):
        check_brake(brake)
        own = {"momentum": momentum, "gamma": gamma, "brake": brake}
        super().__init__(params, lr, adamw_ratio, own | {"weight_decay": weight_decay})

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        step = self.direction(nesterov(self.state[parameter], gradient, group["momentum"]))
        decay(parameter, group)
        step = step / (brake(step, group) + 1e-8)
        parameter.add_(step.to(parameter.dtype), alpha=-group["lr"])


OPTIMIZER = AuON
state_bytes = momentum_bytes
