"""Small problems for optimizers: quadratics of matrices beside a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectrim.optim import OPTIMIZERS, make_optimizer
from spectrim.optim._matrix import MatrixOptimizer

NAMES = [name for name in OPTIMIZERS.names() if hasattr(OPTIMIZERS.get(name), "state_bytes")]
GENERAL = [n for n in NAMES if not getattr(OPTIMIZERS.get(n), "NEEDS_RESIDUALS", False)]
MATRIX = [n for n in GENERAL if issubclass(OPTIMIZERS.get(n).OPTIMIZER, MatrixOptimizer)]
OPTIONS: dict[str, dict[str, Any]] = {
    "dct_adamw": {"rank_fraction": 0.5},
    "trion": {"rank_fraction": 0.5, "adamw_ratio": 1.0},
    "muon": {"adamw_ratio": 1.0},
    "hybrid_auon": {"adamw_ratio": 1.0},
    "galore": {"rank": 4, "update_gap": 3, "scale": 1.0},
    "soap": {"update_gap": 3},
}
RATES = {"auon": 4.0, "hybrid_auon": 0.05, "muon": 0.05, "trion": 0.05}


class Quadratic(nn.Module):
    """`1/2 ||root (W - target)||^2 + 1/2 |b - 1|^2`; curvatures from 1 to 1e-2."""

    def __init__(self, rows: int = 12, columns: int = 8, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.weight = nn.Parameter(drawn(rows, columns))
        self.bias = nn.Parameter(drawn(rows))
        self.target = drawn(rows, columns)
        self.root = torch.logspace(0, -1, rows, dtype=torch.float64).to(dtype)[:, None]

    def loss(self) -> Tensor:
        away = self.root * (self.weight - self.target)
        return 0.5 * away.square().sum() + 0.5 * (self.bias - 1).square().sum()

    def backward(self) -> float:
        self.zero_grad()
        loss = self.loss()
        loss.backward()
        return float(loss.detach())


def optimizer_for(name: str, problem: nn.Module, lr: float | None = None) -> Optimizer:
    rate = RATES.get(name, 0.05) if lr is None else lr
    return make_optimizer(name, problem.parameters(), rate, OPTIONS.get(name))


def run(problem: Quadratic, optimizer: Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(problem.backward())
        optimizer.step()
    return losses
