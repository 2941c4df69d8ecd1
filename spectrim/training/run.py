"""Stages of training in order, resumed to the same end after an interruption."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrim.errors import CheckpointError
from spectrim.optim import measure_state
from spectrim.runtime.cache import load_if_valid, store
from spectrim.runtime.context import RunContext
from spectrim.runtime.files import read_tensors, write_tensors
from spectrim.runtime.snapshots import Snapshots
from spectrim.training.balanced_factors import Parameters
from spectrim.training.inputs import Losses
from spectrim.training.loop import Moments, Stage, Trainer, train
from spectrim.training.schedule import Schedule

_LOG = logging.getLogger("spectrim.refinement")
_LINES = 10
"""Log lines per stage."""


@dataclass
class TrainingState:
    """The position of a run: the parameters of all stages, and the current stage's moments."""

    parameters: Parameters
    stage: int = 0
    losses: Losses = field(default_factory=dict)
    moments: Moments = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the state atomically. Raises InputError for a place that is not writable."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter|{name}"] = parameter
        for name, entries in self.moments.items():
            tensors |= {f"{entry}|{name}": tensor for entry, tensor in entries.items()}
        write_tensors(path, tensors, {"stage": self.stage, "losses": self.losses})

    def read(self, path: Path) -> SavedState:
        """Return a saved state of these parameters. Raises CheckpointError if they misfit."""
        tensors, metadata = read_tensors(path)
        try:
            values = {name: tensors.pop(f"parameter|{name}") for name in self.parameters}
            moments: Moments = {}
            for key, tensor in tensors.items():
                entry, name = key.split("|")
                moments.setdefault(name, {})[entry] = tensor
            stage, losses = int(metadata["stage"]), dict(metadata["losses"])
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} holds no training of this model") from error
        if any(values[name].shape != p.shape for name, p in self.parameters.items()):
            raise CheckpointError(f"{path} holds a training of other shapes")
        return SavedState(values, stage, losses, moments)

    @torch.no_grad()
    def adopt(self, saved: SavedState) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(saved.values[name])
        self.stage, self.losses, self.moments = saved.stage, saved.losses, saved.moments


@dataclass(frozen=True)
class SavedState:
    """The content of a file: a state and the values of its parameters."""

    values: dict[str, Tensor]
    stage: int
    losses: Losses
    moments: Moments


class TrainingRun:
    """A training of `parameters` under `key`; `finished` where the cache has its end, and
    `state_bytes` the most that an optimizer of its stages held.

    Interrupted trainings take up their last snapshot by `resume`, and end in the same
    parameters to the last bit.
    """

    def __init__(self, parameters: Parameters, key: dict[str, Any], context: RunContext):
        self.context = context
        self.entry = context.cache.path("refinement", key)
        self.snapshots = Snapshots(self.entry, shared=True)
        self.state = TrainingState(parameters)
        self.state_bytes = 0
        self.finished = self._adopt(load_if_valid(self.entry, self.state.read))

    def resume(self) -> None:
        """Take up the last snapshot of an interrupted run."""
        self._adopt(self.snapshots.load("state", self.state.read))

    def complete(self, stages: Sequence[Stage], schedule: Schedule) -> Losses:
        """Train all stages in order and return their losses, or those of the finished run."""
        if not self.finished:
            self.resume()
            for number, stage in enumerate(stages):
                self.train_stage(number, stage, schedule)
        return self.finish()

    def train_stage(
        self, number: int, stage: Stage, schedule: Schedule, until: int | None = None
    ) -> None:
        """Train one stage from where it stands, up to step `until` if not to the end.

        Stages of one name are parts of one schedule, each with an optimizer of its own. Raises
        NumericalError naming a bad step.
        """
        if number < self.state.stage:
            return
        if number > self.state.stage:
            self.state.stage = number
            self.state.moments.clear()
        trainer = Trainer(stage, schedule, self.state.moments)
        losses = self.state.losses.setdefault(stage.name, [])
        description = f"refining {stage.name}"
        until = schedule.steps if until is None else until
        for _ in train(trainer, losses, until, description, self.context):
            _log(stage.name, losses, schedule.steps)
            if self.snapshots.due() and trainer.resumes:
                self.state.moments = trainer.moments()
                self.snapshots.save("state", self.state.save)
        self.state_bytes = max(self.state_bytes, measure_state(trainer.optimizer))

    def finish(self) -> Losses:
        """Store the result, without what was needed to resume only, and return the losses."""
        self.state.moments.clear()
        if not self.finished:
            store(self.entry, self.state.save)
        self.snapshots.finish()
        return self.state.losses

    def _adopt(self, saved: SavedState | None) -> bool:
        if saved is not None:
            self.state.adopt(saved)
        return saved is not None


def _log(name: str, losses: list[float], steps: int) -> None:
    """Log the mean loss of each tenth of the stage."""
    done, every = len(losses), max(1, steps // _LINES)
    if done % every == 0:
        recent = losses[-every:]
        _LOG.info("%s: step %d of %d, loss %.5f", name, done, steps, sum(recent) / len(recent))
