"""The sequences of each training step, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spectrim.errors import InputError


class TrainingOptions(Protocol):
    """The options that all training has in common."""

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
        """Return the schedule with `options.warmup_ratio` as a share of the steps."""
        warmup = int(options.warmup_ratio * steps)
        return cls(
            steps, rows, options.learning_rate, warmup, options.seed, options.max_grad_norm
        )

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def batch_indices(self, step: int, available: int) -> Tensor:
        """Return the indices (rows,) of a step's sequences, of `available` ones."""
        rows = min(self.rows, available)
        epoch, number = divmod(step, available // rows)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(available, generator=generator)
        return order[number * rows : (number + 1) * rows]


@dataclass(frozen=True)
class EpochOptions:
    """`steps` of `batch_size` rows each; None: `epochs` over the rows. `warmup_ratio` is a
    share of the steps; gradients are clipped to the norm `max_grad_norm`."""

    epochs: int = 3
    steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        steps = 1 if self.steps is None else self.steps
        if min(self.epochs, steps, self.batch_size) < 1 or self.learning_rate <= 0:
            raise InputError(
                "epochs, steps, batch_size and learning_rate have to be positive, got "
                f"{self.epochs}, {self.steps}, {self.batch_size} and {self.learning_rate}"
            )

    def schedule(self, sequences: int) -> Schedule:
        rows = min(self.batch_size, sequences)
        return Schedule.of(self, self.steps or self.epochs * (sequences // rows), rows)
