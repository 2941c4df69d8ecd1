"""AdamW on `P^T G`, P the r first singular vectors of a gradient every `update_gap` steps.

    W <- W - lr scale P Adam(P^T G)

pytorch_optimizer's GaLore for the matrices, AdamW for the rest. Moments (n, r) and a projector
(m, r) are stored where AdamW stores two matrices, at the cost of an SVD now and then. The
projector is an object of that library, so the state is kept in memory only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from spectrim.optim._wrapped import WrappedOptimizer, library_class

REFERENCE = "Zhao et al., 2024, arXiv:2403.03507"
NEEDS = "pytorch_optimizer"


class GaLore(WrappedOptimizer):
    """rank of the projection; scale: multiplies the step, .25 in the source's pretraining."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        rank: int = 128,
        update_gap: int = 200,
        scale: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        adamw_ratio: float = 1.0,
    ):
        projection: dict[str, Any] = {
            "rank": rank,
            "update_proj_gap": update_gap,
            "scale": scale,
        }
        projection |= {"projection_type": "std", "betas": betas}
        common = {"adamw_ratio": adamw_ratio, "weight_decay": weight_decay}
        make = partial(library_class("GaLore"), lr=lr, **projection)
        super().__init__(params, lr, common, make)


OPTIMIZER = GaLore


def state_bytes(rows: int, columns: int, rank: int = 128) -> int:
    """Return two moments (long, r) and the projector (short, r)."""
    rank = min(rank, rows, columns)
    return 4 * rank * (2 * max(rows, columns) + min(rows, columns))
