"""Optimizers of other libraries for the matrices, AdamW for the rest, in one object."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from spectrim.errors import InputError
from spectrim.optim._matrix import Group, MatrixOptimizer


class WrappedOptimizer(MatrixOptimizer):
    """Steps the matrices by `make(groups)`, which shares groups and state with this object."""

    def __init__(self, params: Any, lr: float, common: Group, make: Callable[[Any], Optimizer]):
        """Wrap `make`; common: `adamw_ratio` and `weight_decay`."""
        super().__init__(params, lr, common.pop("adamw_ratio"), common)
        groups = [group for group in self.param_groups if group["matrix"]]
        own = [{"params": group["params"]} for group in groups]
        self._inner = make(own) if own else None
        if self._inner is not None:
            for group, theirs in zip(groups, self._inner.param_groups, strict=True):
                kept = {name: group[name] for name in ("lr", "weight_decay")}
                group.update(theirs | kept)

    def step_matrices(self, groups: list[Group]) -> None:
        if self._inner is not None:
            self._inner.param_groups = groups
            self._inner.state = self.state
            self._inner.step()


def library_class(name: str) -> Any:
    """Return a class of pytorch_optimizer. Raises InputError when that is not installed."""
    try:
        return getattr(importlib.import_module("pytorch_optimizer"), name)
    except ImportError as error:
        raise InputError(
            f"{name} comes from pytorch_optimizer, which is not installed; "
            "pip install 'spectrim[optim]'"
        ) from error
