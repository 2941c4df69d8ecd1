"""Labels drawn from the model itself at a temperature: curvature where the loss has none left.

    y_t ~ softmax(z_t / T),     soft loss_t = s * -log softmax(z_t / T)[y_t]

A model that has learnt its task is sure of every answer: gradients, their covariance and the
Hessian of its loss all vanish, and say nothing of what a change that is not small would do. The
same quantities at temperature T measure how much the logits z move. In units of the logits
the gradients of the soft loss have covariance F_T = diag(p) - p p^T with s = T, where
p = softmax(z / T), and its Hessian is F_T with s = T^2; F_1 is the Fisher information.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.selection.objective import Objective
from spectrim.tasks import TaskBatch, scored_logits


@dataclass(frozen=True, eq=False)
class LabelledBatch(TaskBatch):
    """labels (n,): the drawn tokens at the scored positions, row by row."""

    labels: Tensor

    def to(self, device: torch.device | str) -> LabelledBatch:
        plain = TaskBatch.to(self, device)
        return LabelledBatch(plain.ids, plain.mask, plain.scored, self.labels.to(device))


@dataclass(frozen=True)
class SoftObjective(Objective):
    """An objective on labels that were drawn once, so that every pass sees the same."""

    labels: tuple[Tensor, ...] = ()

    def batches(self) -> Iterator[TaskBatch]:
        for batch, labels in zip(super().batches(), self.labels, strict=True):
            yield LabelledBatch(batch.ids, batch.mask, batch.scored, labels)


def softened(
    model: nn.Module, objective: Objective, temperature: float, seed: int, scale: float
) -> SoftObjective:
    """Labels drawn by one forward pass over the rows; `scale` is s above."""
    generator = torch.Generator().manual_seed(seed)
    labels = tuple(
        _drawn(model, batch, temperature, generator) for batch in objective.batches()
    )

    def loss(given: nn.Module, batch: TaskBatch) -> tuple[Tensor, int]:
        assert isinstance(batch, LabelledBatch)
        logits, _ = scored_logits(given, batch)
        summed = nn.functional.cross_entropy(
            logits / temperature, batch.labels.to(logits.device), reduction="sum"
        )
        return scale * summed, len(logits)

    plain = replace(objective, loss=loss)
    return SoftObjective(plain.rows, plain.batch_size, plain.loss, labels)


def check_temperature(temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise InputError(f"temperature is {temperature}, expected above 0 (or none)")


@torch.no_grad()
def _drawn(
    model: nn.Module, batch: TaskBatch, temperature: float, generator: torch.Generator
) -> Tensor:
    logits, _ = scored_logits(model, batch)
    probabilities = (logits.float() / temperature).softmax(-1).cpu()
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
