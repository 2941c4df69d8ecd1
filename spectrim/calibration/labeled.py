"""Batches of examples with labels, under the model's own loss.

    loss = n * model(inputs, labels).loss      the mean over n examples or target tokens, summed

Labels drawn from the model are drawn from its outputs, of a target given the data's own tokens
before each.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectrim.calibration.any_rows import AnyRows
from spectrim.calibration.loss import summed_cross_entropy
from spectrim.data.labeled import IGNORED, LabeledRows
from spectrim.data.labeled.rows import MASK
from spectrim.errors import InputError
from spectrim.models.capture import BatchIndex
from spectrim.statistics import at_least_float32

if TYPE_CHECKING:
    from spectrim.calibration.in_memory import CalibrationSettings


@dataclass(frozen=True)
class LabeledBatch:
    """Some rows of `LabeledRows`, cut to the longest of them."""

    first_sequence: int
    inputs: dict[str, Tensor]
    labels: Tensor

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def counted(self) -> Tensor:
        """Return which labels count, of their own shape; every score does."""
        return (self.labels != IGNORED) | self.labels.is_floating_point()

    @property
    def tokens(self) -> int:
        """Return the number of losses: of target tokens, or of examples."""
        return int(self.counted.sum())

    @property
    def index(self) -> BatchIndex:
        masks = [self.inputs[MASK]]
        return AnyRows.masked([*masks, self.counted] if self.labels.dim() == 2 else masks)

    def run(self, model: Any) -> Any:
        """Return the model's output with its own loss; its config stays as it was."""
        without_cache = "use_cache" in inspect.signature(model.forward).parameters
        more = {"use_cache": False} if without_cache else {}
        with _same_problem(model.config):
            return model(**self.inputs, labels=self.labels, **more)

    def forward(self, model: Any) -> Tensor:
        """Return the logits: (B, T, V) of targets, (B, C) of classes, (B, 1) of scores."""
        return self.run(model).logits

    def finite_sum(self, model: Any) -> Tensor:
        return self.run(model).loss

    def summed_loss(self, model: Any, settings: CalibrationSettings) -> Tensor:
        """Sum the loss over the batch, with labels of the data or of the model."""
        output = self.run(model)
        if settings.labels == "data":
            return output.loss * self.tokens
        if self.labels.is_floating_point():
            raise InputError("labels of a regression cannot be sampled; set labels=data")
        logits = at_least_float32(output.logits) / settings.temperature
        labels = torch.full_like(self.labels, IGNORED)
        for number, row in enumerate(logits.detach()):
            generator = torch.Generator(row.device)
            generator.manual_seed(settings.seed * 1_000_003 + self.first_sequence + number)
            chances = row.softmax(-1).flatten(0, -2) if row.dim() > 1 else row.softmax(-1)[None]
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
            labels[number] = drawn.reshape(labels[number].shape)
        labels = labels.masked_fill(~self.counted, IGNORED)
        flat = logits.reshape(-1, logits.shape[-1])
        return settings.temperature * summed_cross_entropy(flat, labels.flatten())


def labeled_batches(
    rows: LabeledRows, tokens: int, start: int, device: torch.device
) -> Iterator[LabeledBatch]:
    """Yield batches of at most `tokens` tokens with their padding, one row at least."""
    for span in rows.spans(tokens, start):
        yield _batch(rows, span, device)


def whole_batch(rows: LabeledRows, device: torch.device) -> LabeledBatch:
    """Return all rows as one batch."""
    return _batch(rows, slice(0, len(rows)), device)


def _batch(rows: LabeledRows, span: slice, device: torch.device) -> LabeledBatch:
    inputs, labels = rows.cut(span)
    moved = {name: values.to(device) for name, values in inputs.items()}
    return LabeledBatch(span.start, moved, labels.to(device))


@contextmanager
def _same_problem(config: Any) -> Iterator[None]:
    """Undo that a classifier's first loss notes in its config what kind of loss it was."""
    before = getattr(config, "problem_type", None)
    try:
        yield
    finally:
        if getattr(config, "problem_type", None) != before:
            config.problem_type = before
