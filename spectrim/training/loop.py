"""The one training loop: an optimizer on the parameters of a stage, step by step.

    c <- c - rate(step) * share_c * step_c(clip(dL/dc))       AdamW's by default, no decay

Refinements, adapters and pruning train with it; `spectrim/training/run.py` resumes the stages
of a run that was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectrim.errors import NumericalError
from spectrim.optim import OPTIMIZERS, check_options, option_names
from spectrim.runtime import distributed
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters
from spectrim.training.eigenbasis import Rotations
from spectrim.training.schedule import Schedule

_DEFAULTS = {"betas": (0.9, 0.95), "weight_decay": 0.0}
"""Of optimizers that take these options."""
Moments = dict[str, dict[str, Tensor]]
"""An optimizer's state, by parameter and entry."""


@dataclass(frozen=True)
class Stage:
    """The parameters that are trained together.

    Attributes:
        loss: takes the indices (rows,) of a step's sequences; several losses are summed, with
            one graph at a time in memory.
        rows: the number of sequences to choose from.
        rotations: of parameters that are stepped in other coordinates, by `kfac_adamw`.
        rates: learning rates relative to the schedule's, 1 for parameters that are absent.
        optimizer: its name, with `options`.
        rest: parameters that are stepped by AdamW whatever their shape.
        after_step: called after every step, to restore what holds between steps.
    """

    name: str
    parameters: Parameters
    loss: Callable[[Tensor], Tensor | Iterator[Tensor]]
    rows: int
    rotations: Rotations = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    optimizer: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)
    rest: frozenset[str] = frozenset()
    after_step: Callable[[], None] | None = None


def train(
    trainer: Trainer, losses: list[float], until: int, description: str, context: RunContext
) -> Iterator[None]:
    """Train from step `len(losses)` up to step `until`, appending to `losses`.

    Yields after every step, where the state is consistent and may be saved. Raises
    NumericalError naming a step that is not finite.
    """
    steps = range(len(losses), until)
    for step in context.progress(steps, description, len(steps)):
        losses.append(trainer.step(step))
        context.log_metrics({f"loss/{trainer.stage.name}": losses[-1]}, len(losses))
        yield


class Trainer:
    """One stage, from its `moments` on; the rate of a step depends on its number alone."""

    def __init__(self, stage: Stage, schedule: Schedule, moments: Moments):
        self.stage = stage
        self.schedule = schedule
        self.parameters = list(stage.parameters.values())
        self.optimizer = _optimizer(stage)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        for name, entries in moments.items():
            self.optimizer.state[stage.parameters[name]] = dict(entries)

    def step(self, number: int) -> float:
        """Take step `number`, from 0, and return the loss before it."""
        sequences = self.schedule.batch_indices(number, self.stage.rows)
        loss, gradients = self._average_gradients(sequences)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.schedule.max_grad_norm))
        value = float(loss)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise NumericalError(
                f"{self.stage.name}: the loss is {value} and the norm of its gradient {norm} "
                f"at step {number + 1} of {self.schedule.steps}; check the model for NaN, or "
                "set a smaller learning_rate"
            )
        for group, relative in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = relative * self.schedule.rate(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.stage.after_step is not None:
            self.stage.after_step()
        return value

    def _average_gradients(self, sequences: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return loss and gradients; of several processes, the mean of their parts by rows."""
        own = distributed.own_rows(sequences)
        if distributed.num_processes() == 1:
            return self._gradients(own, 1.0)
        total, sums = torch.zeros(()), [torch.zeros_like(p) for p in self.parameters]
        with distributed.raise_together():
            if len(own):
                total, sums = self._gradients(own, len(own) / len(sequences))
        distributed.all_reduce_sum_([total, *sums])
        return total, sums

    def _gradients(self, rows: Tensor, share: float) -> tuple[Tensor, list[Tensor]]:
        """Return loss and gradients on `rows`, times `share`, summed over several losses."""
        given = self.stage.loss(rows)
        total, sums = torch.zeros(()), list[Tensor]()
        for part in [given] if isinstance(given, Tensor) else given:
            loss = part if share == 1.0 else part * share
            found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else list(found)
            total = total.to(loss.device) + loss.detach()
        return total, sums

    @property
    def resumes(self) -> bool:
        """True if the optimizer's state is tensors, which a snapshot can hold."""
        states = self.optimizer.state.values()
        return all(isinstance(value, Tensor) for state in states for value in state.values())

    def moments(self) -> Moments:
        state, items = self.optimizer.state, self.stage.parameters.items()
        return {name: dict(state[p]) for name, p in items if p in state}


def _optimizer(stage: Stage) -> Optimizer:
    """Return the stage's optimizer; the rate of its groups is relative to the schedule's."""
    module, known = OPTIMIZERS.get(stage.optimizer), option_names(stage.optimizer)
    options = {name: value for name, value in _DEFAULTS.items() if name in known}
    options |= check_options(stage.optimizer, dict(stage.options))
    if getattr(module, "NEEDS_COVARIANCES", False):
        turned = stage.rotations.items()
        options["rotations"] = {stage.parameters[name]: turn for name, turn in turned}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in stage.parameters.items():
        sort = stage.rates.get(name, 1.0), name not in stage.rest
        groups.setdefault(sort, []).append(parameter)
    given = [{"params": p, "lr": rate, "matrix": m} for (rate, m), p in groups.items()]
    return module.OPTIMIZER(given, lr=1.0, **options)
