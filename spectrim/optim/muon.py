"""`W <- W - lr sqrt(max(1, m / n)) NS(g + mu B)`, `B <- mu B + g`: torch's Muon.

Newton-Schulz replaces the singular values of the momentum by about 1, so that rare directions
are stepped as far as common ones. torch's class takes matrices only; here AdamW steps the rest
in the same object. One buffer per parameter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from spectrim.optim._auon import momentum_bytes
from spectrim.optim._wrapped import WrappedOptimizer

REFERENCE = "Jordan et al., 2024, https://kellerjordan.github.io/posts/muon"
REDUCES_TO = ("Muon", {"weight_decay": 0.1})


class Muon(WrappedOptimizer):
    """adjust_lr: None or "original", the factor above; "match_rms_adamw": AdamW's rates."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr: str | None = None,
        weight_decay: float = 0.0,
        adamw_ratio: float = 0.1,
    ):
        options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov}
        options["adjust_lr_fn"] = adjust_lr
        common = {"adamw_ratio": adamw_ratio, "weight_decay": weight_decay}
        super().__init__(params, lr, common, partial(torch.optim.Muon, lr=lr, **options))


OPTIMIZER = Muon
state_bytes = momentum_bytes
