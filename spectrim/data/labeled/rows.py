"""Encoded examples: padded inputs of a model, with the labels of its loss.

    loss = sum over the labels that count,   one per example, or per token of a target

Examples lie in ascending order of their tokens, so that a batch is padded little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position that no loss counts."""
MASK = "attention_mask"


@dataclass(frozen=True, eq=False)
class LabeledRows:
    """Examples with labels, padded to the longest.

    Attributes:
        inputs: by the model's argument, (N, S); `attention_mask` is 1 on tokens.
        labels: (N, T) target ids, IGNORED on padding, or (N,) classes or scores.
        fingerprint: of all of them.
        source: the spec they are from.
        documents: records that they are from.
        settings: how they were read.
        alone: whether a batch may have no padding, as for models that know no padding token.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    fingerprint: str
    source: str
    documents: int
    settings: dict[str, Any] = field(default_factory=dict)
    alone: bool = False

    @classmethod
    def of(cls, inputs: dict[str, Tensor], labels: Tensor, source: str) -> LabeledRows:
        """Return the examples in ascending order of their tokens."""
        sizes = _sizes(inputs[MASK], labels)
        order = sizes.argsort(stable=True)
        inputs = {name: values[order] for name, values in inputs.items()}
        name = _fingerprint(inputs, labels[order])
        return cls(inputs, labels[order], name, source, len(labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_targets(self) -> bool:
        return self.labels.dim() == 2

    @property
    def of_features(self) -> bool:
        """Return whether inputs are features of one length for all examples, not tokens."""
        return any(values.dim() > 2 for values in self.inputs.values())

    @property
    def length(self) -> int:
        """Return the tokens of the longest row, with its target."""
        return int(self.sizes.max())

    @property
    def sizes(self) -> Tensor:
        """Return the tokens of each row (N,), with its target."""
        return _sizes(self.inputs[MASK], self.labels)

    @property
    def tokens(self) -> int:
        return int(self.sizes.sum())

    @property
    def fewest_tokens(self) -> int:
        """Return the tokens of the side, inputs or targets, that has fewer."""
        read = int(self.inputs[MASK].sum())
        return min(read, int((self.labels != IGNORED).sum())) if self.has_targets else read

    def select(self, rows: Tensor) -> LabeledRows:
        """Return the rows of the given indices (n,), in that order."""
        inputs = {name: values[rows] for name, values in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels[rows])

    def every(self, step: int) -> LabeledRows:
        """Return rows 0, step, 2 step, ..."""
        return self.select(torch.arange(0, len(self), step))

    def first_tokens(self, tokens: int) -> LabeledRows:
        """Return as many rows, of all lengths, as hold about `tokens` tokens, one at least."""
        count = max(1, min(len(self), int(tokens * len(self) / max(1, self.tokens))))
        return self.select(torch.linspace(0, len(self) - 1, count).round().long())

    def spans(self, tokens: int, start: int = 0) -> Iterator[slice]:
        """Yield batches of at most `tokens` tokens with their padding, one row at least."""
        sizes = self.sizes.tolist()
        while start < len(sizes):
            stop = start + 1
            while not self.alone and stop < len(sizes):
                if sizes[stop] * (stop + 1 - start) > tokens:  # ascending: the longest
                    break
                stop += 1
            yield slice(start, stop)
            start = stop

    def cut(self, rows: slice) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs and labels of some rows, no wider than their longest.

        Inputs are one wider where a target has as many positions: a layer's side, and so the
        mask of its rows, is told by their number.
        """
        labels = self.labels[rows]
        if self.of_features:
            inputs = {name: values[rows] for name, values in self.inputs.items()}
            return inputs, _other_width(labels, self.inputs[MASK].shape[1])
        width = int(self.inputs[MASK][rows].sum(1).max())
        if self.has_targets:
            counted = int((labels != IGNORED).sum(1).max())
            labels = labels[:, :counted].contiguous()
            width += width == counted
        inputs = {name: _first(values[rows], width) for name, values in self.inputs.items()}
        return inputs, labels


def _first(values: Tensor, width: int) -> Tensor:
    """Return the first columns; a column of padding is added where there are fewer."""
    missing = width - values.shape[1]
    if missing <= 0:
        return values[:, :width]
    return torch.cat([values, torch.zeros_like(values[:, :missing])], 1)


def _other_width(labels: Tensor, width: int) -> Tensor:
    """Return the targets as wide as their longest, and one wider where that is `width`."""
    counted = int((labels != IGNORED).sum(1).max())
    labels = labels[:, :counted]
    if counted == width:
        labels = torch.cat([labels, torch.full_like(labels[:, :1], IGNORED)], 1)
    return labels.contiguous()


def _sizes(mask: Tensor, labels: Tensor) -> Tensor:
    read = mask.sum(1)
    return read + (labels != IGNORED).sum(1) if labels.dim() == 2 else read


def _fingerprint(inputs: dict[str, Tensor], labels: Tensor) -> str:
    digest = hashlib.sha256()
    for name, values in sorted((inputs | {"labels": labels}).items()):
        digest.update(f"{name}{values.dtype}{tuple(values.shape)}".encode())
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
