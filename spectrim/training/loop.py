"""The one training loop: AdamW on the parameters of a stage, step by step.

    c <- c - rate(step) * share_c * Adam(clip(dL/dc))       no weight decay

Refinements, adapters and pruning train with it; `spectrim/training/run.py` resumes the stages
of a run that was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spectrim.errors import NumericalError
from spectrim.runtime import distributed
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters
from spectrim.training.eigenbasis import Rotations
from spectrim.training.schedule import Schedule

_BETAS = (0.9, 0.95)
Moments = dict[str, dict[str, Tensor]]
"""AdamW's state, by parameter and entry."""


@dataclass(frozen=True)
class Stage:
    """The parameters that are trained together.

    Attributes:
        loss: takes the indices (rows,) of a step's sequences.
        rows: the number of sequences to choose from.
        rotations: of parameters that are stepped in other coordinates.
        rates: learning rates relative to the schedule's, 1 for parameters that are absent.
    """

    name: str
    parameters: Parameters
    loss: Callable[[Tensor], Tensor]
    rows: int
    rotations: Rotations = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


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
    """AdamW on one stage, from its `moments` on; a step's rate depends on its number alone."""

    def __init__(self, stage: Stage, schedule: Schedule, moments: Moments):
        self.stage = stage
        self.schedule = schedule
        self.parameters = list(stage.parameters.values())
        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, parameter in stage.parameters.items():
            by_rate.setdefault(stage.rates.get(name, 1.0), []).append(parameter)
        groups = [{"params": params, "relative": rate} for rate, params in by_rate.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0)
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
        for group in self.optimizer.param_groups:
            group["lr"] = group["relative"] * self.schedule.rate(number)
        self._update()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _average_gradients(self, sequences: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return loss and gradients; of several processes, the mean of their parts by rows."""
        own = distributed.own_rows(sequences)
        if distributed.num_processes() == 1:
            loss = self.stage.loss(own)
            gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            return loss.detach(), gradients
        total, sums = torch.zeros(()), [torch.zeros_like(p) for p in self.parameters]
        with distributed.raise_together():
            if len(own):
                loss = self.stage.loss(own) * (len(own) / len(sequences))
                sums = list(torch.autograd.grad(loss, self.parameters, materialize_grads=True))
                total = loss.detach()
        distributed.all_reduce_sum_([total, *sums])
        return total, sums

    @torch.no_grad()
    def _update(self) -> None:
        """Step the optimizer in the coordinates of the stage."""
        rotated = [(self.stage.parameters[n], r) for n, r in self.stage.rotations.items()]
        for parameter, rotation in rotated:
            assert parameter.grad is not None
            parameter.grad = rotation.into(parameter.grad).contiguous()
            parameter.copy_(rotation.into(parameter))
        self.optimizer.step()
        for parameter, rotation in rotated:
            parameter.copy_(rotation.back(parameter))

    def moments(self) -> Moments:
        state, items = self.optimizer.state, self.stage.parameters.items()
        return {name: dict(state[p]) for name, p in items if p in state}
