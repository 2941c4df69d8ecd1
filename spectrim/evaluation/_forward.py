"""Functions shared by evaluators that run the model: mode, batches, logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks, check_vocabulary
from spectrim.errors import InputError
from spectrim.models.context import check_length

LOGITS_ROOM = 2**28
"""Bytes; more rows at once are no faster where their logits are that large."""


@dataclass(frozen=True)
class BatchOptions:
    """`batch_size` changes speed and memory, not the result."""

    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1")


@dataclass(frozen=True)
class Batch:
    """Rows `start ... start + B - 1` of the blocks; `mask` is None when none is padded."""

    start: int
    ids: Tensor
    mask: Tensor | None
    scored: Tensor | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.ids))

    @property
    def predicted(self) -> Tensor:
        """Return (B, T - 1) bool: positions whose next token exists and counts."""
        if self.scored is not None:
            return self.scored[:, 1:]
        if self.mask is None:
            return torch.ones_like(self.ids[:, 1:], dtype=torch.bool)
        return self.mask[:, 1:]

    def describe(self) -> str:
        return f"batch of rows {self.start} to {self.start + len(self.ids) - 1}"


def batches(blocks: TokenBlocks, size: int) -> Iterator[Batch]:
    for start in range(0, len(blocks), size):
        rows = slice(start, start + size)
        mask = None if blocks.mask is None else blocks.mask[rows]
        scored = None if blocks.scored is None else blocks.scored[rows]
        yield Batch(start, blocks.ids[rows], mask, scored)


def fitting_batches(model: PreTrainedModel, blocks: TokenBlocks, size: int) -> Iterator[Batch]:
    """Yield batches of at most `size` rows whose logits take at most `LOGITS_ROOM` bytes."""
    row = 4 * blocks.ids.shape[1] * model.config.get_text_config().vocab_size
    yield from batches(blocks, max(1, min(size, LOGITS_ROOM // row)))


def logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return logits (B, T, V) in the model's own dtype."""
    mask = None if batch.mask is None else batch.mask.long().to(model.device)
    output = model(input_ids=batch.ids.to(model.device), attention_mask=mask, use_cache=False)
    return output.logits


def log_probabilities(logits_tv: Tensor) -> Tensor:
    """Return (T, V) in float32 or better; called row by row, so that only one row is upcast."""
    dtype = torch.promote_types(logits_tv.dtype, torch.float32)
    return logits_tv.to(dtype).log_softmax(-1)


def check_readable(model: PreTrainedModel, blocks: TokenBlocks) -> None:
    """Raise InputError if the ids or the length of the rows do not fit the model."""
    config = model.config.get_text_config()
    check_vocabulary(blocks, config.vocab_size)
    check_length(model, blocks.ids.shape[1])
