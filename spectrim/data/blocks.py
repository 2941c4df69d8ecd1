"""Token blocks: a stream of documents cut into rows of one length.

document -> strip -> tokens without special ones -> [BOS] + tokens
stream   =  document_1 ++ document_2 ++ ...        (file order, or shuffled by a seed)
ids[n]   =  stream[n * length : (n + 1) * length]  (the incomplete tail is dropped)
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from spectrim.data.loading import open_documents
from spectrim.data.tokenizing import in_order, read_tokens
from spectrim.errors import InputError

SHORTEST_ROW = 2
"""Tokens; one fewer and there is no next token to predict."""


@dataclass(frozen=True)
class BlockSettings:
    """How many rows (`None`: all) of how many tokens, and which part of the stream.

    `seed=None` keeps the documents in file order. `max_tokens` keeps the first tokens of
    the stream; `keep_tail` keeps its incomplete last row (two tokens or more), padded.
    """

    sequences: int | None = None
    length: int = 2048
    seed: int | None = None
    max_tokens: int | None = None
    keep_tail: bool = False

    def __post_init__(self) -> None:
        _at_least("length", self.length, SHORTEST_ROW)
        _at_least("sequences", self.sequences, 1)
        _at_least("max_tokens", self.max_tokens, self.shortest_row)

    @property
    def shortest_row(self) -> int:
        return SHORTEST_ROW if self.keep_tail else self.length

    @property
    def token_limit(self) -> int:
        asked = self.sequences * self.length if self.sequences else sys.maxsize
        return min(asked, self.max_tokens or sys.maxsize)


@dataclass(frozen=True, eq=False)
class TokenBlocks:
    """`ids` (N, length) int64; `mask` (N, length) bool, True on tokens, None when all are.

    `document_of_row` (N,) is set when no row spans two documents (see `document_blocks`).
    `scored` (N, length) bool is True on the tokens whose prediction counts in the loss of a
    calibration, None when all but the first do; inputs of the layers are summed over all of
    `mask` either way.
    """

    ids: Tensor
    mask: Tensor | None
    fingerprint: str
    source: str
    documents: int
    settings: dict[str, Any] = field(default_factory=dict)
    document_of_row: Tensor | None = None
    scored: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.ids.numel() if self.mask is None else int(self.mask.sum())

    def every(self, step: int) -> TokenBlocks:
        """Rows 0, step, 2 step, ..."""
        rest = (self.mask, self.document_of_row, self.scored)
        mask, owner, scored = (None if t is None else t[::step].contiguous() for t in rest)
        ids = self.ids[::step].contiguous()
        return replace(self, ids=ids, mask=mask, document_of_row=owner, scored=scored)


def token_blocks(
    documents_or_spec: str | Iterable[str], tokenizer: Any, settings: BlockSettings
) -> TokenBlocks:
    """Rows of the concatenated documents; tokenises no more of them than it needs.

    Raises InputError for unusable text and for too few tokens; warns (UserWarning) when
    there are fewer rows than `settings.sequences`.
    """
    source, texts = _opened(documents_or_spec)
    limit = settings.token_limit
    documents, skipped = read_tokens(in_order(texts, settings.seed), tokenizer, limit)
    stream = torch.tensor(list(chain.from_iterable(documents)), dtype=torch.long)
    rows = _usable(stream, settings.length, settings.shortest_row)
    _check_amount(len(stream), len(rows), settings, source)
    ids, mask = _padded(rows, settings.length)
    record = _record(settings, skipped)
    return TokenBlocks(ids, mask, fingerprint(ids, mask), source, len(documents), record)


def document_blocks(
    documents_or_spec: str | Iterable[str], tokenizer: Any, settings: BlockSettings
) -> TokenBlocks:
    """Windows of each document on its own; every incomplete window is kept, padded.

    Raises InputError as `token_blocks` does; `settings.sequences` must be None.
    """
    if settings.sequences is not None:
        raise InputError(
            "documents scored on their own are limited by max_tokens; got sequences"
        )
    source, texts = _opened(documents_or_spec)
    limit = settings.token_limit
    documents, skipped = read_tokens(in_order(texts, settings.seed), tokenizer, limit)
    windows = [
        _usable(torch.tensor(tokens), settings.length, SHORTEST_ROW) for tokens in documents
    ]
    rows = list(chain.from_iterable(windows))
    _check_amount(sum(map(len, documents)), len(rows), settings, source)
    ids, mask = _padded(rows, settings.length)
    counts = torch.tensor([len(window) for window in windows])
    owner = torch.arange(len(windows)).repeat_interleave(counts)
    record = _record(settings, skipped)
    return TokenBlocks(ids, mask, fingerprint(ids, mask), source, len(documents), record, owner)


def fingerprint(ids: Tensor, mask: Tensor | None, scored: Tensor | None = None) -> str:
    """sha256 of the shape, the ids (int64), the mask and what is scored (bool), row-major."""
    digest = hashlib.sha256(repr(tuple(ids.shape)).encode())
    digest.update(ids.cpu().numpy().astype("<i8").tobytes())
    for marks in (mask, scored):
        if marks is not None:
            digest.update(marks.cpu().numpy().tobytes())
    return digest.hexdigest()


def check_vocabulary(blocks: TokenBlocks, vocab_size: int) -> None:
    """Raises InputError for a token id outside `[0, vocab_size)`."""
    foreign = (blocks.ids < 0) | (blocks.ids >= vocab_size)
    if foreign.any():
        row, position = foreign.nonzero()[0].tolist()
        raise InputError(
            f"token id {int(blocks.ids[row, position])} (row {row}, position {position}) is "
            f"beyond the model's vocabulary of {vocab_size}: the tokenizer and the model do "
            "not match; load both from the same checkpoint"
        )


def _opened(documents_or_spec: str | Iterable[str]) -> tuple[str, Iterable[str]]:
    if isinstance(documents_or_spec, str):
        return documents_or_spec, open_documents(documents_or_spec)
    return "documents", documents_or_spec


def _usable(tokens: Tensor, length: int, shortest: int) -> list[Tensor]:
    """Chunks of `length` tokens, those shorter than `shortest` left out."""
    return [row for row in tokens.split(length) if len(row) >= shortest]


def _padded(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor | None]:
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return ids, None if mask.all() else mask


def _record(settings: BlockSettings, skipped: int) -> dict[str, Any]:
    order = "file" if settings.seed is None else "shuffled"
    return asdict(settings) | {"order": order, "empty_documents": skipped}


def _check_amount(tokens: int, rows: int, settings: BlockSettings, source: str) -> None:
    if tokens == 0:
        raise InputError(f"'{source}' holds no text: every document is empty")
    if rows == 0:
        raise InputError(
            f"got {tokens} tokens of text, expected at least {settings.shortest_row}; "
            "give more text or a smaller --length"
        )
    if settings.sequences is not None and rows < settings.sequences:
        warnings.warn(
            f"asked for {settings.sequences} sequences of {settings.length} tokens, "
            f"the text gives {rows}; using those",
            stacklevel=3,
        )


def _at_least(name: str, value: int | None, smallest: int) -> None:
    if value is not None and value < smallest:
        raise InputError(f"{name} is {value}, expected at least {smallest}")
