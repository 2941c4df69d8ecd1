"""Token blocks: a stream of documents cut into rows of one length.

    document -> strip -> tokens without special ones
    stream   =  document_1 ++ document_2 ++ ...      (file order, or shuffled by a seed)
    ids[n]   =  prefix ++ the next tokens of the stream; between documents the prefix again

`prefix` is what the tokenizer adds to a text (BOS for most models, nothing for some), so that
every row is what the model meets in use. No prediction of a prefix counts in a loss. A
tokenizer that adds nothing gets an empty line between documents. `rows="packed"` cuts the
stream `[BOS] + document_1, [BOS] + document_2, ...` anywhere, as published code does. The
incomplete last row is dropped, or padded.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from spectrim.data.loading import open_documents, split_spec
from spectrim.data.mixing import mix_blocks, share_settings
from spectrim.data.rows import Row, fingerprint, packed_rows, pad_rows, prefixed_rows
from spectrim.data.tokenizing import (
    Reading,
    in_order,
    leading_tokens,
    packed_leading_tokens,
    read_tokens,
    separating_tokens,
)
from spectrim.errors import InputError

RowKind = Literal["prefixed", "packed"]
SHORTEST_ROW = 2
"""Tokens; one fewer and there is no next token to predict."""


@dataclass(frozen=True)
class BlockSettings:
    """The number of rows (`None`: all), their length, and the part of the stream to use.

    `seed=None` keeps the documents in file order. `max_tokens` keeps the first tokens of
    the stream; `keep_tail` keeps its incomplete last row (two tokens or more), padded. `rows`:
    "prefixed" rows begin as the tokenizer begins a text, "packed" ones anywhere.
    """

    sequences: int | None = None
    length: int = 2048
    seed: int | None = None
    max_tokens: int | None = None
    keep_tail: bool = False
    rows: RowKind = "prefixed"

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
    `scored` (N, length) bool is True on the tokens whose prediction counts in a loss, None
    when all but the first do; inputs of the layers are summed over all of `mask` either way.
    `weights` (N,) float64, of each row in sums over tokens; None where all count once.
    """

    ids: Tensor
    mask: Tensor | None
    fingerprint: str
    source: str
    documents: int
    settings: dict[str, Any] = field(default_factory=dict)
    document_of_row: Tensor | None = None
    scored: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def fewest_tokens(self) -> int:
        """Return the tokens that every layer sees."""
        return self.tokens

    @property
    def tokens(self) -> int:
        return self.ids.numel() if self.mask is None else int(self.mask.sum())

    def every(self, step: int) -> TokenBlocks:
        """Return rows 0, step, 2 step, ..."""
        return self.select(torch.arange(0, len(self), step))

    def select(self, rows: Tensor) -> TokenBlocks:
        """Return the rows of the given indices (n,), in that order."""
        rest = (self.mask, self.document_of_row, self.scored, self.weights)
        mask, owner, scored, weights = (None if t is None else t[rows] for t in rest)
        part = replace(self, ids=self.ids[rows], mask=mask, document_of_row=owner)
        return replace(part, scored=scored, weights=weights)

    def weighted(self, rows: Tensor, weights: Tensor) -> TokenBlocks:
        """Return the given rows (n,) with `weights` (n,) and a fingerprint of their own."""
        part = replace(self.select(rows), weights=weights)
        name = fingerprint(part.ids, part.mask, part.scored, weights.double())
        return replace(part, fingerprint=name)


def token_blocks(
    documents_or_spec: str | Iterable[str],
    tokenizer: Any,
    settings: BlockSettings,
    field: str | None = None,
) -> TokenBlocks:
    """Return rows of the concatenated documents; tokenize no more of them than they need.

    A spec of several texts gives each its share of the rows, the texts' rows in turn. Raises
    InputError for unusable text and for too few tokens; warns (UserWarning) when there are
    fewer rows than `settings.sequences`, and of records whose field is null.
    """
    if not isinstance(documents_or_spec, str):
        return _text_blocks(documents_or_spec, tokenizer, settings, "documents")
    parts = split_spec(documents_or_spec)
    wanted = share_settings(parts, settings)
    blocks = [
        _text_blocks(open_documents(part.spec, field), tokenizer, own, part.spec)
        for part, own in zip(parts, wanted, strict=True)
    ]
    return blocks[0] if len(blocks) == 1 else mix_blocks(blocks, settings, documents_or_spec)


def document_blocks(
    documents_or_spec: str | Iterable[str], tokenizer: Any, settings: BlockSettings
) -> TokenBlocks:
    """Return windows of each document on its own; every incomplete one is kept, padded.

    Raises InputError as `token_blocks` does; `settings.sequences` must be None.
    """
    if settings.sequences is not None:
        raise InputError(
            "documents scored on their own are limited by max_tokens; got sequences"
        )
    source, texts = _opened(documents_or_spec)
    cut = _Cut(tokenizer, replace(settings, keep_tail=True))
    reading = cut.read(texts)
    windows = [
        [row for row in cut.rows([tokens]) if len(row.ids) >= cut.shortest]
        for tokens in reading.documents
    ]
    rows = list(chain.from_iterable(windows))
    _check_amount(reading, len(rows), settings, source)
    counts = torch.tensor([len(window) for window in windows])
    owner = torch.arange(len(windows)).repeat_interleave(counts)
    blocks = _blocks(rows, settings, source, reading)
    return replace(blocks, document_of_row=owner)


def _text_blocks(
    texts: Iterable[Any], tokenizer: Any, settings: BlockSettings, source: str
) -> TokenBlocks:
    cut = _Cut(tokenizer, settings)
    reading = cut.read(texts)
    rows = [row for row in cut.rows(reading.documents) if len(row.ids) >= cut.shortest]
    _check_amount(reading, len(rows), settings, source)
    return _blocks(rows[: settings.sequences], settings, source, reading)


class _Cut:
    """The settings of cutting documents into rows, with one tokenizer."""

    def __init__(self, tokenizer: Any, settings: BlockSettings):
        self._tokenizer, self._settings = tokenizer, settings
        packed = settings.rows == "packed"
        self._prefix = [] if packed else leading_tokens(tokenizer)
        self._separator = [] if packed else separating_tokens(tokenizer)
        self._document = packed_leading_tokens(tokenizer) if packed else []
        if len(self._prefix) >= settings.length:
            raise InputError(
                f"length is {settings.length}, but the tokenizer begins every text with "
                f"{len(self._prefix)} tokens; give --length {len(self._prefix) + 1} or more"
            )

    @property
    def shortest(self) -> int:
        """Tokens of the shortest row that is kept: one prediction at least."""
        return max(self._settings.shortest_row, len(self._prefix) + 1)

    def read(self, texts: Iterable[Any]) -> Reading:
        """Read no more tokens than fill the rows that are asked for."""
        settings = self._settings
        ordered = in_order(texts, settings.seed)
        limit = settings.token_limit - (settings.sequences or 0) * len(self._prefix)
        return read_tokens(ordered, self._tokenizer, limit, self._document)

    def rows(self, documents: list[list[int]]) -> list[Row]:
        length = self._settings.length
        if self._settings.rows == "packed":
            return packed_rows(documents, length)
        return prefixed_rows(documents, self._prefix, self._separator, length)


def _blocks(
    rows: list[Row], settings: BlockSettings, source: str, reading: Reading
) -> TokenBlocks:
    ids, mask, scored = pad_rows(rows, settings.length)
    name = fingerprint(ids, mask, scored)
    record = _record(settings, reading)
    return TokenBlocks(ids, mask, name, source, len(reading.documents), record, scored=scored)


def check_vocabulary(blocks: TokenBlocks, vocab_size: int) -> None:
    """Raise InputError for a token id outside `[0, vocab_size)`."""
    foreign = (blocks.ids < 0) | (blocks.ids >= vocab_size)
    if foreign.any():
        row, position = foreign.nonzero()[0].tolist()
        raise InputError(
            f"token id {int(blocks.ids[row, position])} (row {row}, position {position}) is "
            f"beyond the model's vocabulary of {vocab_size}: the tokenizer and the model do "
            "not match; load both from the same checkpoint"
        )


def _opened(documents_or_spec: str | Iterable[str]) -> tuple[str, Iterable[Any]]:
    if isinstance(documents_or_spec, str):
        return documents_or_spec, open_documents(documents_or_spec)
    return "documents", documents_or_spec


def _record(settings: BlockSettings, reading: Reading) -> dict[str, Any]:
    order = "file" if settings.seed is None else "shuffled"
    counts = {"empty_documents": reading.empty, "null_documents": reading.null}
    return asdict(settings) | {"order": order} | counts


def _check_amount(reading: Reading, rows: int, settings: BlockSettings, source: str) -> None:
    if reading.tokens == 0:
        raise InputError(f"'{source}' holds no text: every document is empty")
    if reading.null:
        seen = reading.null + reading.empty + len(reading.documents)
        warnings.warn(
            f"'{source}': skipped {reading.null} of the {seen} records read: their field is "
            "null",
            stacklevel=4,
        )
    if rows == 0:
        raise InputError(
            f"got {reading.tokens} tokens of text, expected at least {settings.shortest_row}; "
            "give more text or a smaller --length"
        )
    if settings.sequences is not None and rows < settings.sequences:
        warnings.warn(
            f"asked for {settings.sequences} sequences of {settings.length} tokens, "
            f"the text gives {rows}; using those",
            stacklevel=4,
        )


def _at_least(name: str, value: int | None, smallest: int) -> None:
    if value is not None and value < smallest:
        raise InputError(f"{name} is {value}, expected at least {smallest}")
