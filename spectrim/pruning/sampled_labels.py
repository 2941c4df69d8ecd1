"""Labels drawn from the model itself: curvature where the data's labels give none.

    y_t ~ q_t,   q = 1/5 p + 4/5 softmax(z / max(T, 5/2)),   p = softmax(z / T)

    squares   T   sqrt(p / q)(y_t) * -log p_t(y_t)     gradients' mean square is F_T
    hessian   T^2      (p / q)(y_t) * -log p_t(y_t)    mean Hessian is F_T = diag(p) - p p^T

both in units of the logits z. A model that has learned its task is sure of every answer: with
the data's labels the gradients and their squares vanish faster than the Hessian does, and at
T = 1 even drawn labels are nearly always the likely ones. Drawing from the flatter q and
weighting changes no mean, with far less noise. F_1 is the Fisher information, the Hessian near
a minimum; F_T for larger T tells how much the logits move, which is what matters when a change
will not stay small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrim.data.tasks import TaskBatch, scored_logits
from spectrim.errors import InputError
from spectrim.pruning.objective import Objective

_FLATTEST, _OWN = 2.5, 0.2
Use = Literal["squares", "hessian"]
POWERS: dict[Use, int] = {"squares": 1, "hessian": 2}
"""Of T, and of sqrt(p / q)."""


@dataclass(frozen=True, eq=False)
class LabeledBatch(TaskBatch):
    """labels, weights (n,): the drawn tokens at the scored positions, row by row, and
    sqrt(p / q) of each."""

    labels: Tensor
    weights: Tensor

    def to(self, device: torch.device | str) -> LabeledBatch:
        plain = TaskBatch.to(self, device)
        return LabeledBatch(
            plain.ids, plain.mask, plain.scored, self.labels.to(device), self.weights.to(device)
        )


@dataclass(frozen=True)
class SoftObjective(Objective):
    """An objective on labels that were drawn once, so that every pass sees the same."""

    drawn: tuple[tuple[Tensor, Tensor], ...] = ()

    def batches(self) -> Iterator[TaskBatch]:
        for batch, drawn in zip(super().batches(), self.drawn, strict=True):
            yield LabeledBatch(batch.ids, batch.mask, batch.scored, *drawn)


def sample_labels(
    model: nn.Module, objective: Objective, temperature: float, seed: int, use: Use
) -> SoftObjective:
    """Draw labels by one forward pass over the rows, at `temperature` T, for one `use`."""
    generator = torch.Generator().manual_seed(seed)
    power = POWERS[use]
    scale = temperature**power
    drawn = tuple(_drawn(model, batch, temperature, generator) for batch in objective.batches())

    def loss(given: nn.Module, batch: TaskBatch) -> tuple[Tensor, int]:
        assert isinstance(batch, LabeledBatch)
        logits, _ = scored_logits(given, batch)
        batch = batch.to(logits.device)
        losses = cross_entropy(logits / temperature, batch.labels, reduction="none")
        return scale * (batch.weights.to(losses) ** power * losses).sum(), len(logits)

    plain = replace(objective, loss=loss)
    return SoftObjective(plain.rows, plain.batch_size, plain.loss, drawn)


def check_temperature(temperature: float | None, draws: int = 1) -> None:
    """Raise InputError for a temperature or a number of draws out of range."""
    if (temperature is not None and not temperature > 0) or draws < 1:
        raise InputError(
            f"temperature is {temperature} and draws {draws}, expected above 0 (temperature "
            "may be none)"
        )


@torch.no_grad()
def _drawn(
    model: nn.Module, batch: TaskBatch, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    logits, _ = scored_logits(model, batch)
    logits = logits.float().cpu()
    wanted = (logits / temperature).softmax(-1)
    flat = (logits / max(temperature, _FLATTEST)).softmax(-1)
    proposed = _OWN * wanted + (1 - _OWN) * flat
    labels = torch.multinomial(proposed, 1, generator=generator)
    weights = (wanted.gather(1, labels) / proposed.gather(1, labels)).sqrt()
    return labels[:, 0], weights[:, 0]
