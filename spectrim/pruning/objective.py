"""The loss that a basis is judged by: a mean over scored tokens of one set of rows.

L = 1/n sum_t loss_t,    n the scored tokens of all rows
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.data.tasks import TaskBatch, TaskRows, task_loss
from spectrim.errors import NumericalError

SummedLoss = Callable[[nn.Module, TaskBatch], tuple[Tensor, int]]
"""The summed loss of a batch and how many tokens it is summed over."""


@dataclass(frozen=True)
class Objective:
    """rows, how many of them go through the model at once, and the loss of a batch."""

    rows: TaskRows
    batch_size: int = 32
    loss: SummedLoss = task_loss

    def batches(self) -> Iterator[TaskBatch]:
        """All rows once, in order."""
        for chosen in torch.arange(len(self.rows)).split(self.batch_size):
            yield self.rows.batch(chosen)

    @torch.no_grad()
    def value(self, model: nn.Module) -> float:
        """L, summed in float64. Raises NumericalError when it is not finite."""
        total, count = 0.0, 0
        for batch in self.batches():
            summed, tokens = self.loss(model, batch)
            total, count = total + float(summed.double()), count + int(tokens)
        return _finite(total / max(1, count))

    def gradients(
        self,
        model: nn.Module,
        parameters: list[Any],
        batches: Iterable[TaskBatch] | None = None,
    ) -> tuple[list[Tensor], int]:
        """dL/dp for each parameter, and n: a gradient pass, over all rows or some `batches`."""
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        count = 0
        for batch in self.batches() if batches is None else batches:
            summed, tokens = self.loss(model, batch)
            _finite(float(summed.detach()))
            for place, gradient in zip(
                sums,
                torch.autograd.grad(summed, parameters, materialize_grads=True),
                strict=True,
            ):
                place += gradient
            count += int(tokens)
        return [place / max(1, count) for place in sums], count


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise NumericalError(
            f"the task's loss is {value}: check the model for NaN, or set a smaller "
            "learning_rate"
        )
    return value
