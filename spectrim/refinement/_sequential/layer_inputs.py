"""Inputs of layers: x' of the rewritten prefix, and x of the original.

    covariance = E[x' x'^T],   shift = E[(x - x') x'^T]

Inputs are recorded while a block runs; layers that are given the very same tensor share
their sums. An expert is given other tokens in each model: tokens that only the rewritten
model routes to it count with x = x'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.models.experts import SplitExperts, record_routes
from spectrim.models.hooks import attach_hooks
from spectrim.statistics import sum_of_outer_products

Stage = dict[str, list[str]]
"""Layers that do not read each other: the first reader of a tensor -> all its readers."""


@dataclass(frozen=True)
class Input:
    """x (n, in) of one batch; rows (n,) are its flat positions (B * T), None for all."""

    x: Tensor
    rows: Tensor | None

    def real(self, real: Tensor) -> Input:
        """Return the input without padding; real (B * T) bool."""
        if self.rows is None:
            return Input(self.x[real], None)
        kept = real[self.rows]
        return Input(self.x[kept], self.rows[kept])


@dataclass
class Sums:
    """Sums over `count` tokens, float64, (in, in) each; no shift where it is not wanted."""

    count: int = 0
    covariance: Tensor | None = None
    shift: Tensor | None = None

    def add(self, own: Input, other: Input | None) -> None:
        self.count += len(own.x)
        self.covariance = _added(self.covariance, sum_of_outer_products(own.x))
        if other is not None:
            away = _partners(own, other).float() - own.x.float()
            self.shift = _added(self.shift, away.T @ own.x.float())


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part.double() if total is None else total.add_(part)


def _partners(own: Input, other: Input) -> Tensor:
    """(n, in): what the other model gives this layer at each of `own`'s tokens."""
    if own.rows is None or other.rows is None:
        return other.x
    partners = own.x.clone()
    shared = torch.isin(own.rows, other.rows)  # both ascend, so they stay in step
    partners[shared] = other.x[torch.isin(other.rows, own.rows)]
    return partners


class _AllSeen(Exception):
    """Ends a forward pass once nothing more is to be recorded."""


def record_inputs(
    model: nn.Module, names: Sequence[str], run: Callable[[], object]
) -> dict[str, Input]:
    """Return each layer's input in `run()`, which is ended when all are recorded.

    An expert that no token reached is missing.
    """
    found: dict[str, Input] = {}

    def keep(name: str, module: nn.Module, x: Tensor) -> None:
        found[name] = Input(x.detach().flatten(0, -2), routes.get(module))
        if len(found) == len(names):
            raise _AllSeen

    with record_routes(model) as routes, _watched(model, names, keep), suppress(_AllSeen):
        run()
    return found


def stages(model: nn.Module, names: Sequence[str], run: Callable[[], object]) -> list[Stage]:
    """Return the layers as `run()` reaches them, in stages that do not read each other.

    A stage is the readers of one tensor (q/k/v, gate/up), or the same layer of all experts.
    Layers that `run()` does not reach come in model order.
    """
    first: dict[int, tuple[str, Tensor]] = {}
    leaders: dict[str, str] = {}

    def keep(name: str, module: nn.Module, x: Tensor) -> None:
        leaders[name] = first.setdefault(id(x), (name, x))[0]

    with _watched(model, names, keep):
        run()
    found: dict[str, Stage] = {}
    for name in [*leaders, *(name for name in names if name not in leaders)]:
        leader = leaders.get(name, name)
        stage = found.setdefault(_all_experts(model, leader), {})
        stage.setdefault(leader, []).append(name)
    return list(found.values())


def _all_experts(model: nn.Module, name: str) -> str:
    """Return the list that holds this layer of all experts; for other layers their name."""
    layers = name.rpartition(".")[0]
    owner = layers.rpartition(".")[0]
    return layers if isinstance(model.get_submodule(owner), SplitExperts) else name


def _watched(
    model: nn.Module, names: Sequence[str], keep: Callable[[str, nn.Module, Tensor], None]
) -> AbstractContextManager[None]:
    """`keep` is called with name, layer and input at every call of the layers."""

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            keep(name, module, inputs[0])

        return hook

    return attach_hooks([(model.get_submodule(name), hook_for(name)) for name in names])
