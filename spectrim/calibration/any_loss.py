"""Calibrate any module under any loss: the caller's loss runs it, hooks sum the statistics.

    loss(model, batch) -> (n,)    one loss per example, of its graph

Sums are over the rows that a layer sees (positions of a sequence, patches of an image, or whole
examples), so a predicted loss is per example: `share` is then the rows per example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.calibration.any_rows import AnyRows, check_statistics
from spectrim.calibration.in_memory import accumulator
from spectrim.errors import InputError, ModelError
from spectrim.models.capture import CaptureSpec, capture, group_by_input
from spectrim.models.hooks import attach_hooks, frozen_eval
from spectrim.models.prepare import warn_of_dense
from spectrim.models.targets import Target
from spectrim.models.usage import unusable_layers
from spectrim.statistics import STATISTICS, Calibration

Loss = Callable[[nn.Module, Any], Tensor]
Mask = Callable[[Any], Tensor | Sequence[Tensor]]


def calibrate_module(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Iterable[Any],
    loss: Loss,
    statistics: Sequence[str],
    mask: Mask | None = None,
) -> Calibration:
    """Sum the statistics over all batches; the model is left as it was.

    mask(batch) (B, T), True on real positions, or several of them for the sides of a model,
    which are told by their numbers of positions. Targets that the model uses in another way
    than by calling them are left out, with a warning that names them. Raises InputError for no
    batches, statistics by sequence, or a loss that is not one number per example; ModelError
    for one that is not finite.
    """
    check_statistics(statistics)
    backward = any(STATISTICS.get(name).NEEDS_GRADIENT for name in statistics)
    result: Calibration | None = None
    with ExitStack() as stack:
        stack.enter_context(frozen_eval(model))
        for number, batch in enumerate(batches):
            if result is None:
                result = _begin(model, targets, batch, loss, statistics)
                targets = [target for target in targets if target.name in result.groups]
                stack.enter_context(_graph_from(model, targets, backward))
            index = AnyRows.masked(() if mask is None else mask(batch))
            watch = CaptureSpec(index, accumulator(result), backward)
            with (
                capture(model, targets, watch),
                torch.set_grad_enabled(backward),
            ):
                values = check_losses(loss(model, batch), number)
                if backward:
                    values.sum().backward()
            result.tokens += len(values)
    if result is None:
        raise InputError("there are no batches to calibrate on")
    result.provenance["examples"] = result.tokens
    return result


def check_losses(values: Tensor, number: int) -> Tensor:
    """Return (n,) finite losses. Raises InputError and ModelError naming the batch."""
    if values.dim() != 1:
        raise InputError(
            f"the loss of batch {number} has the shape {tuple(values.shape)}, expected one "
            "number per example (n,)"
        )
    if not bool(torch.isfinite(values).all()):
        raise ModelError(f"the loss is not finite on batch {number}; check weights and inputs")
    return values


def _begin(
    model: nn.Module, targets: Sequence[Target], batch: Any, loss: Loss, names: Sequence[str]
) -> Calibration:
    @torch.no_grad()
    def run() -> None:
        loss(model, batch)

    groups: dict[str, str] = {}
    unusable = unusable_layers(
        model, lambda: groups.update(group_by_input(model, targets, run))
    )
    dense = {
        target.name: unusable[target.name] for target in targets if target.name in unusable
    }
    warn_of_dense(dense, len(targets) - len(dense))
    shapes = {target.name: target.shape for target in targets if target.name not in dense}
    first: dict[str, str] = {}  # of those that are left, by the first of all
    groups = {name: first.setdefault(groups[name], name) for name in shapes}
    result = Calibration.empty(shapes, groups, names)
    result.provenance = {"labels": "given by the loss", "key": {}, "dense": dense}
    return result


def _graph_from(
    model: nn.Module, targets: Sequence[Target], backward: bool
) -> AbstractContextManager[None]:
    """Start the graph at the first layers that are reached: parameters are frozen."""

    def start(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        first, *others = inputs
        if first.requires_grad or not torch.is_grad_enabled():
            return None
        return (first.detach().requires_grad_(True), *others)

    layers = [model.get_submodule(target.name) for target in targets if backward]
    return attach_hooks((layer, start) for layer in layers)
