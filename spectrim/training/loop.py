"""The one training loop: AdamW in stages, stopped at any step and continued to the same end."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spectrim.data import TokenBlocks
from spectrim.errors import CheckpointError, NumericalError
from spectrim.models.fingerprint import model_fingerprint
from spectrim.runtime import distributed
from spectrim.runtime.cache import exists
from spectrim.runtime.files import read_tensors, write_tensors
from spectrim.training.balanced_factors import Parameters
from spectrim.training.eigenbasis import Rotations
from spectrim.training.progress import RunContext

_LOG = logging.getLogger("spectrim.refinement")
_LINES = 10
"""Log lines per stage."""
_BETAS = (0.9, 0.95)


class TrainingOptions(Protocol):
    """What the options of every refinement that trains have."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_ratio(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Schedule:
    """Steps of `rows` sequences each; the rate rises over `warmup` steps, then falls to zero
    along a cosine. Every epoch visits the sequences in an order drawn from `seed`."""

    steps: int
    rows: int
    learning_rate: float
    warmup: int
    seed: int
    max_grad_norm: float = 1.0

    @classmethod
    def of(cls, options: TrainingOptions, steps: int, rows: int) -> Schedule:
        """With `options.warmup_ratio` as a share of the steps."""
        warmup = int(options.warmup_ratio * steps)
        return cls(
            steps, rows, options.learning_rate, warmup, options.seed, options.max_grad_norm
        )

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def chosen(self, step: int, available: int) -> Tensor:
        """Indices (rows,) of the sequences of a step."""
        rows = min(self.rows, available)
        epoch, number = divmod(step, available // rows)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(available, generator=generator)
        return order[number * rows : (number + 1) * rows]


@dataclass(frozen=True)
class Stage:
    """What is trained together; `loss` takes the indices of the sequences of a step.
    Parameters that `rotations` names are stepped in other coordinates."""

    name: str
    parameters: Parameters
    loss: Callable[[Tensor], Tensor]
    rotations: Rotations = field(default_factory=dict)


@dataclass
class State:
    """Where a run stands: the parameters of all stages, the present stage's optimiser."""

    parameters: Parameters
    stage: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Atomic. Raises InputError when the place cannot be written."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter|{name}"] = parameter
        for name, entries in self.moments.items():
            tensors |= {f"{entry}|{name}": tensor for entry, tensor in entries.items()}
        write_tensors(path, tensors, {"stage": self.stage, "losses": self.losses})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Into the same parameters, or not at all. Raises CheckpointError if they misfit."""
        tensors, metadata = read_tensors(path)
        try:
            kept = {name: tensors.pop(f"parameter|{name}") for name in self.parameters}
            moments: dict[str, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                entry, name = key.split("|")
                moments.setdefault(name, {})[entry] = tensor
            stage, losses = int(metadata["stage"]), dict(metadata["losses"])
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} holds no refinement of this model") from error
        if any(kept[name].shape != p.shape for name, p in self.parameters.items()):
            raise CheckpointError(f"{path} holds a refinement of other shapes")
        for name, parameter in self.parameters.items():
            parameter.copy_(kept[name])
        self.stage, self.losses, self.moments = stage, losses, moments


class Run:
    """A refinement under way."""

    def __init__(self, parameters: Parameters, progress: RunContext):
        self.progress = progress
        self.state = State(parameters)
        self.path: Path | None = None
        self._saved = time.monotonic()

    def begin(self, key: dict[str, Any]) -> bool:
        """Take up what the workspace has under `key`; True when that is the end of the run."""
        if self.finished(key):
            return True
        self.go_on()
        return False

    def finished(self, key: dict[str, Any]) -> bool:
        """Take up the end of the run under `key` where the workspace has it."""
        self.path = self.progress.cache.path("refinement", key)
        if self.path is None or not self._taken_up(self.path):
            return False
        _partial(self.path).unlink(missing_ok=True)
        self.progress.losses.update(self.state.losses)
        return True

    def go_on(self) -> None:
        """Take up where a run under the key of `finished` was stopped, if one was."""
        if self.path is not None:
            self._taken_up(_partial(self.path))

    def _taken_up(self, path: Path) -> bool:
        if not distributed.all_true(exists(path)):
            return False
        try:
            self.state.load(path)
        except CheckpointError as error:
            warnings.warn(f"starting the refinement again: {error}", stacklevel=4)
            return False
        return True

    def complete(
        self, key: dict[str, Any], stages: Sequence[Stage], schedule: Schedule, available: int
    ) -> None:
        """All stages in order, each with `schedule`, or what the workspace has of them."""
        if self.begin(key):
            return
        for number, stage in enumerate(stages):
            self.stage(number, stage, schedule, available)
        self.finish()

    def stage(self, number: int, stage: Stage, schedule: Schedule, available: int) -> None:
        """Train one stage from where it stands. Raises NumericalError naming a bad step."""
        if number < self.state.stage:
            self.progress.losses[stage.name] = self.state.losses[stage.name]
            return
        self._enter(number)
        trainer = _Trainer(stage, schedule, self.state.moments)
        losses = self.state.losses.setdefault(stage.name, [])
        steps = range(len(losses), schedule.steps)
        what = f"refining {stage.name}"
        for step in self.progress.progress(steps, what, len(steps)):
            losses.append(trainer.step(step, schedule.chosen(step, available)))
            _log(stage.name, losses, schedule.steps)
            self.progress.log_metrics({f"loss/{stage.name}": losses[-1]}, len(losses))
            self._save_now_and_then(trainer)
        trainer.clear()
        self.progress.losses[stage.name] = losses

    def finish(self) -> None:
        """Keep the result, without what was only needed to continue."""
        self.state.moments.clear()
        with distributed.raise_together():
            if self.path is not None and distributed.is_main_process():
                self.state.save(self.path)
                _partial(self.path).unlink(missing_ok=True)

    def _enter(self, number: int) -> None:
        if number > self.state.stage:
            self.state.stage = number
            self.state.moments.clear()

    def _save_now_and_then(self, trainer: _Trainer) -> None:
        waited = time.monotonic() - self._saved
        if self.path is None or not distributed.is_main_process():
            return
        if waited >= self.progress.seconds_between_saves:
            self.state.moments = trainer.moments()
            self.state.save(_partial(self.path))
            self._saved = time.monotonic()


class _Trainer:
    """AdamW on one stage."""

    def __init__(self, stage: Stage, schedule: Schedule, moments: dict[str, Any]):
        self.stage = stage
        self.schedule = schedule
        self.parameters = list(stage.parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, betas=_BETAS, weight_decay=0.0)
        for name, entries in moments.items():
            self.optimizer.state[stage.parameters[name]] = dict(entries)

    def step(self, number: int, sequences: Tensor) -> float:
        loss, gradients = self._averaged(sequences)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.parameters, self.schedule.max_grad_norm)
        value = float(loss)
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise NumericalError(
                f"refining {self.stage.name}: the loss is {value} and its gradient's norm "
                f"{float(norm)} at step {number + 1} of {self.schedule.steps}; check the "
                "models for NaN, or set a smaller learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(number)
        self._update()
        return value

    def _averaged(self, sequences: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Loss and gradients; of several processes, the mean of their parts' by rows."""
        own = sequences[distributed.process_index() :: distributed.num_processes()]
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
        """A step of the optimiser in the stage's coordinates."""
        turned = [(self.stage.parameters[n], r) for n, r in self.stage.rotations.items()]
        for parameter, rotation in turned:
            assert parameter.grad is not None
            parameter.grad = rotation.into(parameter.grad).contiguous()
            parameter.copy_(rotation.into(parameter))
        self.optimizer.step()
        for parameter, rotation in turned:
            parameter.copy_(rotation.back(parameter))

    def moments(self) -> dict[str, dict[str, Tensor]]:
        names = self.stage.parameters.items()
        return {name: dict(self.optimizer.state[parameter]) for name, parameter in names}

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def run_key(
    name: str, original: nn.Module, compressed: nn.Module, blocks: TokenBlocks, options: Any
) -> dict[str, Any]:
    """All that the result of a refinement depends on."""
    shared = (
        {"processes": distributed.num_processes()} if distributed.num_processes() > 1 else {}
    )
    return shared | {
        "refinement": [name, asdict(options)],
        "original": model_fingerprint(original),
        "compressed": model_fingerprint(compressed),
        "data": blocks.fingerprint,
    }


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _log(name: str, losses: list[float], steps: int) -> None:
    """The mean loss of each tenth of the stage."""
    done, every = len(losses), max(1, steps // _LINES)
    if done % every == 0:
        recent = losses[-every:]
        _LOG.info("%s: step %d of %d, loss %.5f", name, done, steps, sum(recent) / len(recent))
