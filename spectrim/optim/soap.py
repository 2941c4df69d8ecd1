"""AdamW in the eigenbases of `E[G G^T]` and `E[G^T G]`, refreshed every `update_gap` steps.

    W <- W - lr Q_l Adam(Q_l^T G Q_r) Q_r^T

pytorch_optimizer's SOAP for the matrices, AdamW for the rest. Besides two moments it stores
both averages and both bases, `2 (m^2 + n^2)` numbers. Its first step only collects them. The
state holds lists of that library, so it is kept in memory only. With bases that are known
beforehand it is `kfac_adamw`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from spectrim.optim._wrapped import WrappedOptimizer, library_class

REFERENCE = "Vyas et al., 2024, arXiv:2409.11321"
NEEDS = "pytorch_optimizer"


class SOAP(WrappedOptimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        update_gap: int = 10,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        adamw_ratio: float = 1.0,
    ):
        options = {"precondition_frequency": update_gap, "betas": betas}
        common = {"adamw_ratio": adamw_ratio, "weight_decay": weight_decay}
        make = partial(library_class("SOAP"), lr=lr, **options)
        super().__init__(params, lr, common, make)


OPTIMIZER = SOAP


def state_bytes(rows: int, columns: int) -> int:
    """Return two moments, two averages and two bases."""
    return 8 * rows * columns + 8 * (rows**2 + columns**2)
