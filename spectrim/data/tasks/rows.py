"""Examples as rows of tokens, with the tokens that the loss counts.

row     =  [BOS] ++ tokens(prompt + answer) ++ [EOS]        (EOS where the tokenizer has one)
scored  =  the tokens of the answer and EOS                 (labels "answer")
        or all but the first token                          (labels "all")
loss    =  - sum over scored t of log p(row[t] | row[:t])

Where prompt and answer meet is told in `encoding`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectrim.data import TokenBlocks
from spectrim.data.blocks import SHORTEST_ROW
from spectrim.data.rows import fingerprint
from spectrim.data.tasks.encoding import example_tokens
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tokenizing import leading_tokens
from spectrim.errors import InputError

Labels = Literal["answer", "all"]
LABELS = ("answer", "all")


@dataclass(frozen=True)
class RowSettings:
    """length: tokens of the longest row, BOS and EOS included; labels: see the module."""

    length: int = 512
    labels: Labels = "answer"

    def __post_init__(self) -> None:
        if self.length < SHORTEST_ROW:
            raise InputError(f"length is {self.length}, expected at least {SHORTEST_ROW}")
        if self.labels not in LABELS:
            raise InputError(f"labels '{self.labels}' unknown; expected one of {LABELS}")


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """`ids` (B, T) int64, `mask` and `scored` (B, T) bool: real tokens, those in the loss."""

    ids: Tensor
    mask: Tensor
    scored: Tensor

    def to(self, device: torch.device | str) -> TaskBatch:
        return TaskBatch(self.ids.to(device), self.mask.to(device), self.scored.to(device))


@dataclass(frozen=True, eq=False)
class TaskRows:
    """`ids` (N, L) int64, padded on the right; `mask` and `scored` (N, L) bool."""

    ids: Tensor
    mask: Tensor
    scored: Tensor
    fingerprint: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return the given rows, cut to the longest of them."""
        longest = int(self.mask[rows].sum(1).max())
        return TaskBatch(*(t[rows, :longest] for t in (self.ids, self.mask, self.scored)))

    def batches(self, size: int, seed: int, epoch: int = 0) -> Iterator[TaskBatch]:
        """Yield batches of every row once, in an order fixed by `seed` and `epoch`."""
        if size < 1:
            raise InputError(f"batch size is {size}, expected at least 1")
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for rows in torch.randperm(len(self), generator=generator).split(size):
            yield self.batch(rows)


def task_rows(
    examples: Sequence[TaskExample],
    tokenizer: Any,
    settings: RowSettings | None = None,
    source: str = "examples",
) -> TaskRows:
    """Examples longer than `settings.length` are left out with a UserWarning.

    Raises InputError when there is no example, or none that fits.
    """
    settings = settings or RowSettings()
    if not examples:
        raise InputError(f"'{source}' holds no example")
    encoded = _encoded(examples, tokenizer, settings)
    kept = [(row, first) for row, first in encoded if len(row) <= settings.length]
    dropped = len(encoded) - len(kept)
    _report(dropped, len(encoded), min(len(row) for row, _ in encoded), settings)
    ids, mask, scored = _padded(kept)
    record = asdict(settings) | {"examples": len(kept), "too_long": dropped}
    return TaskRows(ids, mask, scored, fingerprint(ids, mask, scored), source, record)


def calibration_blocks(rows: TaskRows) -> TokenBlocks:
    """Return calibration rows: inputs of layers over all tokens, the loss over scored ones.

    Sums are divided by all tokens, so a predicted loss is per token of prompts and answers;
    times `mask.sum() / scored.sum()` it is per token of the answers.
    """
    mask = None if bool(rows.mask.all()) else rows.mask
    n = len(rows)
    return TokenBlocks(
        rows.ids, mask, rows.fingerprint, rows.source, n, rows.settings, scored=rows.scored
    )


def task_loss(model: nn.Module, batch: TaskBatch) -> tuple[Tensor, int]:
    """Return the summed cross-entropy (float32 or better) and number of the scored tokens."""
    logits, labels = scored_logits(model, batch)
    return nn.functional.cross_entropy(logits, labels, reduction="sum"), len(labels)


def scored_logits(model: nn.Module, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """(n, V) in float32 or better, before each of n scored tokens, and those tokens (n,).

    Logits before the first scored token of the batch are not computed where the model's
    `forward` takes `logits_to_keep`; only those of scored tokens are upcast.
    """
    batch = batch.to(next(model.parameters()).device)
    wanted = batch.scored[:, 1:]
    if not bool(wanted.any()):
        raise InputError("no token of the batch is scored; expected at least one")
    first = int(wanted.any(0).nonzero()[0])
    length = batch.ids.shape[1]
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = length - first
    attention = None if bool(batch.mask.all()) else batch.mask.long()
    logits = model(input_ids=batch.ids, attention_mask=attention, **options).logits
    wanted = wanted[:, first:]
    predicting = logits[:, first - length : -1][wanted]
    predicting = predicting.to(torch.promote_types(predicting.dtype, torch.float32))
    return predicting, batch.ids[:, first + 1 :][wanted]


def _encoded(
    examples: Sequence[TaskExample], tokenizer: Any, settings: RowSettings
) -> list[tuple[list[int], int]]:
    """Each example's tokens, and the position of the first one that is scored."""
    before = leading_tokens(tokenizer)
    after = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows = []
    for tokens, border in example_tokens(examples, tokenizer):
        first = 1 if settings.labels == "all" else max(1, len(before) + border)
        rows.append((before + tokens + after, first))
    return rows


def _report(dropped: int, all_: int, shortest: int, settings: RowSettings) -> None:
    if dropped == all_:
        raise InputError(
            f"none of the {all_} examples fits into {settings.length} tokens, the shortest "
            f"has {shortest}; give a larger length, as far as the model reads it"
        )
    if dropped:
        warnings.warn(
            f"{dropped} of {all_} examples are longer than {settings.length} tokens and left "
            "out",
            stacklevel=3,
        )


def _padded(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
    shape = len(rows), max(len(row) for row, _ in rows)
    ids = torch.zeros(shape, dtype=torch.long)
    mask, scored = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for number, (row, first) in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = True
        scored[number, first : len(row)] = True
    return ids, mask, scored
