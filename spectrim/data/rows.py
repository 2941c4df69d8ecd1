"""Cut documents' tokens into rows of one length.

    prefixed   row = prefix ++ tokens; between two documents of a row its separator
    packed     row = the next `length` tokens of  prefix ++ document_1 ++ prefix ++ ...

A row's first token is predicted from nothing and no prefix or separator is text: their
predictions do not count in a loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor


@dataclass
class Row:
    """Token ids, and which of them a loss counts the prediction of."""

    ids: list[int] = field(default_factory=list)
    scored: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], *, scored: bool, length: int) -> int:
        """Append what fits into `length` tokens; return how many did."""
        fitting = ids[: length - len(self.ids)]
        self.ids.extend(fitting)
        self.scored.extend([scored] * len(fitting))
        return len(fitting)


def prefixed_rows(
    documents: Iterable[Sequence[int]],
    prefix: Sequence[int],
    separator: Sequence[int],
    length: int,
) -> list[Row]:
    """Return rows that begin with `prefix`; the last one may be shorter than `length`."""
    rows: list[Row] = []
    for document in documents:
        if rows and len(rows[-1].ids) < length:
            rows[-1].add(separator, scored=False, length=length)
        done = 0
        while done < len(document):
            if not rows or len(rows[-1].ids) == length:
                rows.append(Row())
                rows[-1].add(prefix, scored=False, length=length)
            done += rows[-1].add(document[done:], scored=True, length=length)
    return rows


def packed_rows(documents: Iterable[Sequence[int]], length: int) -> list[Row]:
    """Return rows cut from the documents end to end, wherever a row is full."""
    stream = list(chain.from_iterable(documents))
    chunks = [stream[start : start + length] for start in range(0, len(stream), length)]
    return [Row(chunk, [True] * len(chunk)) for chunk in chunks]


def pad_rows(rows: Sequence[Row], length: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return ids (N, length) int64, mask and scored (N, length) bool.

    The mask is None when no row is padded, `scored` when it is all but the first tokens.
    """
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    scored = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        mask[number, : len(row.ids)] = True
        scored[number, : len(row.ids)] = torch.tensor(row.scored)
    scored[:, :1] = False
    usual = scored.equal(all_but_first(mask))
    return ids, None if mask.all() else mask, None if usual else scored


def all_but_first(mask: Tensor) -> Tensor:
    """Return the mask without the first token of each row, which nothing predicts."""
    marks = mask.clone()
    marks[:, :1] = False
    return marks


def fingerprint(
    ids: Tensor,
    mask: Tensor | None,
    scored: Tensor | None = None,
    weights: Tensor | None = None,
) -> str:
    """Return the sha256 of shape, ids (int64), mask, scored (bool), weights, row-major."""
    digest = hashlib.sha256(repr(tuple(ids.shape)).encode())
    digest.update(ids.cpu().numpy().astype("<i8").tobytes())
    for marks in (mask, scored, weights):
        if marks is not None:
            digest.update(marks.cpu().numpy().tobytes())
    return digest.hexdigest()
