"""AdamW on `a = (G + E) P`, P the columns of a cosine transform that hold most of `G + E`.

    S = (G + E) Q,   P = Q[:, r longest columns of S],   E <- (G + E) - a P^T,
    (m, v) <- columns kept from the last P, zero for new ones,   W <- W - lr Adam(a) P^T

Q is a fixed orthogonal basis of the shorter side, known from its size alone: moments (m, r)
and r indices are stored where AdamW stores two matrices. What a step leaves out is not lost
but added to the next gradient (error feedback). Every column counts its own steps: with one
count for all, the first step of a new column would be several times too long. The l2 norm
keeps the most of the gradient; the authors' default is l1, `norm=1`.

Most of the gain is the selection, not the cosine: `basis` is dct, hadamard, random or identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectrim.linalg.dct import Basis
from spectrim.optim._matrix import Group, MatrixOptimizer, decay
from spectrim.optim._state import state_dtype
from spectrim.optim._subspace import basis_for, longest, narrow, rank_of, shaped

REFERENCE = "Modoranu et al., 2025, arXiv:2505.17967"
REDUCES_TO = ("AdamW", {"rank_fraction": 1.0, "basis": "identity"})


class DctAdamW(MatrixOptimizer):
    """rank_fraction: r as a share of the shorter side; update_gap: steps between selections."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        rank_fraction: float = 0.25,
        basis: Basis = "dct",
        error_feedback: bool = True,
        norm: int = 2,
        update_gap: int = 1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adamw_ratio: float = 1.0,
    ):
        own: Group = {
            "rank_fraction": rank_fraction,
            "basis": basis,
            "norm": norm,
            "betas": betas,
        }
        own |= {"error_feedback": error_feedback, "update_gap": update_gap, "eps": eps}
        own |= {"adamw_betas": betas, "adamw_eps": eps, "weight_decay": weight_decay}
        super().__init__(params, lr, adamw_ratio, own)

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state = self.state[parameter]
        wanted = narrow(gradient.to(state_dtype(parameter)))
        if "error" in state:
            wanted = wanted + state["error"]
        basis = basis_for(group["basis"], wanted.shape[1], wanted.dtype, wanted.device)
        projected = wanted if group["basis"] == "identity" else wanted @ basis
        _choose(state, projected, group)
        chosen = projected[:, state["indices"]]
        back = basis[:, state["indices"]].T
        if group["error_feedback"]:
            state["error"] = wanted - chosen @ back
        decay(parameter, group)
        step = shaped(_adam(state, chosen, group) @ back, parameter)
        parameter.add_(step, alpha=-group["lr"])


def _choose(state: dict[str, Tensor], projected: Tensor, group: Group) -> None:
    """Select the columns of this step, where it is one for a selection."""
    rank = rank_of(group["rank_fraction"], projected)
    if "indices" not in state:
        state["step"] = torch.tensor(0.0)
        state["steps"] = projected.new_zeros(rank)
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment] = projected.new_zeros(len(projected), rank)
        state["indices"] = longest(projected, rank, group["norm"])
    elif int(state["step"]) % group["update_gap"] == 0:
        _move(state, longest(projected, rank, group["norm"]), projected.shape[1])
    state["step"] += 1


def _move(state: dict[str, Tensor], indices: Tensor, size: int) -> None:
    """Move the moments of columns that stay to their places; a new column starts at zero."""
    places = torch.full((size,), -1, device=indices.device)
    places[state["indices"]] = torch.arange(len(indices), device=indices.device)
    source = places[indices]
    for entry in ("exp_avg", "exp_avg_sq", "steps"):
        moved = state[entry][..., source.clamp(min=0)]
        state[entry] = torch.where(source >= 0, moved, 0.0)
    state["indices"] = indices


def _adam(state: dict[str, Tensor], chosen: Tensor, group: Group) -> Tensor:
    """Return Adam's direction (m, r), each column corrected for its own number of steps."""
    beta1, beta2 = group["betas"]
    state["steps"] += 1
    state["exp_avg"].lerp_(chosen, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(chosen, chosen, value=1 - beta2)
    mean = state["exp_avg"] / (1 - beta1 ** state["steps"])
    square = state["exp_avg_sq"] / (1 - beta2 ** state["steps"])
    return mean / (square.sqrt() + group["eps"])


OPTIMIZER = DctAdamW


def state_bytes(
    rows: int, columns: int, rank_fraction: float = 0.25, error_feedback: bool = True
) -> int:
    """Return `8 m r`, 12 per column, and the error `4 m n` if it is fed back."""
    long, short = max(rows, columns), min(rows, columns)
    rank = max(1, round(rank_fraction * short))
    return 8 * long * rank + 12 * rank + 4 + (4 * rows * columns if error_feedback else 0)
