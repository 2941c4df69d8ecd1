"""The base of optimizers that step matrices by a rule of their own, the rest by AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from spectrim.errors import InputError
from spectrim.optim._state import loss_of, restore_formats

Group = dict[str, Any]


class MatrixOptimizer(Optimizer):
    """Steps 2-D parameters of groups with `matrix` (default True) by `update`.

    A given group is split in two, so that every group holds one sort. The rates of the others
    are `adamw_ratio` times the matrices', and follow the same schedule. A parameter whose
    gradient is not finite is skipped, and its state stays.

    Subclasses implement `update`, or `step_matrices` for all of them at once.
    """

    def __init__(self, params: Any, lr: float, adamw_ratio: float, defaults: Group):
        if lr < 0 or adamw_ratio < 0:
            raise InputError(f"lr and adamw_ratio cannot be negative, got {lr}, {adamw_ratio}")
        common: Group = {
            "lr": lr,
            "adamw_ratio": adamw_ratio,
            "matrix": True,
            "weight_decay": 0.0,
        }
        common |= {"adamw_betas": (0.9, 0.95), "adamw_eps": 1e-8}
        super().__init__(params, common | defaults)

    def add_param_group(self, param_group: Group) -> None:
        given = param_group["params"]
        params = [given] if isinstance(given, Tensor) else list(given)
        if any(isinstance(p, tuple) for p in params):
            raise InputError("give parameters without names: model.parameters()")
        sorts: dict[bool, list[Tensor]] = {True: [], False: []}
        for p in params:
            sorts[param_group.get("matrix", True) and p.ndim == 2].append(p)
        for matrix, chosen in sorts.items():
            if chosen or not (params or matrix):
                group = param_group | {"params": chosen, "matrix": matrix}
                if not matrix:
                    ratio = group.get("adamw_ratio", self.defaults["adamw_ratio"])
                    group["lr"] = ratio * group.get("lr", self.defaults["lr"])
                super().add_param_group(group)

    def load_state_dict(self, state_dict: Group) -> None:
        super().load_state_dict(state_dict)
        restore_formats(self, state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = loss_of(closure)
        with self._without_broken_gradients():
            self.step_matrices([group for group in self.param_groups if group["matrix"]])
            for group in self.param_groups:
                if not group["matrix"]:
                    step_adamw(group, self.state)
        return loss

    def step_matrices(self, groups: list[Group]) -> None:
        for group in groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, group)

    def update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        """Step one matrix (m, n) in place; `gradient` is not to be written to."""
        raise NotImplementedError

    @contextmanager
    def _without_broken_gradients(self) -> Iterator[None]:
        """Hide gradients that are not finite, with one synchronization for all of them."""
        given = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        finite = [p.grad.isfinite().all() for p in given]
        good = torch.stack([one.cpu() for one in finite]).tolist() if finite else []
        hidden = [(p, p.grad) for p, ok in zip(given, good, strict=True) if not ok]
        for p, _ in hidden:
            p.grad = None
        try:
            yield
        finally:
            for p, gradient in hidden:
                p.grad = gradient


def decay(parameter: Tensor, group: Group) -> None:
    """Apply decoupled weight decay: `W <- (1 - lr weight_decay) W`."""
    if group["weight_decay"]:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


def step_adamw(group: Group, state: Any) -> None:
    """Step a group by torch's AdamW, whose state has the same names."""
    params = [p for p in group["params"] if p.grad is not None]
    for p in params:
        if not state[p]:
            state[p]["step"] = torch.tensor(0.0)
            state[p]["exp_avg"] = torch.zeros_like(p)
            state[p]["exp_avg_sq"] = torch.zeros_like(p)
    beta1, beta2 = group["adamw_betas"]
    adamw(
        params,
        [p.grad for p in params],
        [state[p]["exp_avg"] for p in params],
        [state[p]["exp_avg_sq"] for p in params],
        [],
        [state[p]["step"] for p in params],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["adamw_eps"],
        maximize=False,
    )
