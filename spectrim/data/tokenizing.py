"""Turn documents into tokens: their order, what the tokenizer adds, and no more than needed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TypeVar

from spectrim.data.conversation import Conversation
from spectrim.data.pieces import encode, encode_pieces
from spectrim.errors import InputError

T = TypeVar("T")

_SAMPLES = ("a", "1", "\u4e00", "the", "<", " a b")
"""Short texts; of some a tokenizer keeps nothing, as one without Latin letters does."""
SHUFFLE_POOL = 10_000
"""Documents of a stream that are shuffled; what is in memory is shuffled whole."""


@dataclass
class Reading:
    """Tokens by document, and how many documents had no text or a field that is null."""

    documents: list[list[int]] = field(default_factory=list)
    empty: int = 0
    null: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))


def in_order(documents: Iterable[T], seed: int | None) -> Iterable[T]:
    """Return `documents` as they are (`seed=None`) or shuffled, streams within a first pool."""
    if seed is None:
        return documents
    rest = iter(documents)
    whole = isinstance(documents, list | tuple)
    pool = list(rest) if whole else list(islice(rest, SHUFFLE_POOL))
    random.Random(seed).shuffle(pool)
    return chain(pool, rest)


def read_tokens(
    documents: Iterable[object], tokenizer: Any, limit: int, before: Sequence[int] = ()
) -> Reading:
    """Tokenize documents, each after the tokens `before`, up to `limit` tokens in all.

    Raises:
        InputError: A document is not text.
    """
    reading = Reading()
    left = limit
    for number, document in enumerate(documents, start=1):
        if document is None:
            reading.null += 1
            continue
        tokens = _first_tokens(_pieces(document, number, tokenizer), left)
        if not tokens:
            reading.empty += 1
            continue
        if isinstance(document, Conversation):
            tokens = _without(before or leading_tokens(tokenizer), tokens)
        reading.documents.append([*before, *tokens][:left])
        left -= len(reading.documents[-1])
        if left <= 0:
            break
    return reading


def _first_tokens(pieces: Iterable[list[int]], limit: int) -> list[int]:
    tokens: list[int] = []
    for piece in pieces:
        tokens += piece
        if len(tokens) >= limit:
            break
    return tokens


def _without(prefix: Sequence[int], tokens: list[int]) -> list[int]:
    """Return `tokens` without a `prefix` that a chat template put there already."""
    begins = bool(prefix) and tokens[: len(prefix)] == list(prefix)
    return tokens[len(prefix) :] if begins else tokens


def leading_tokens(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer itself puts before a text.

    They are what stands before the plain tokens of a short text when special tokens are added:
    BOS for most models, nothing for some, several for a few.
    """
    for sample in _SAMPLES:
        whole = list(tokenizer(sample, verbose=False)["input_ids"])
        plain = encode(sample, tokenizer)
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return whole[:start]
    return []


def first_tokens(tokenizer: Any) -> list[int]:
    """Return what opens a text that a model writes: `leading_tokens`, else BOS, else EOS."""
    return leading_tokens(tokenizer) or packed_leading_tokens(tokenizer)


def packed_leading_tokens(tokenizer: Any) -> list[int]:
    """Return BOS, else EOS, else nothing: what packed rows have before each document."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    return []


def separating_tokens(tokenizer: Any) -> list[int]:
    """Return what stands between documents in a row: `leading_tokens`, else an empty line."""
    return leading_tokens(tokenizer) or encode("\n\n", tokenizer)


def _pieces(document: object, number: int, tokenizer: Any) -> Iterator[list[int]]:
    if isinstance(document, Conversation):
        text = document.render(tokenizer)
    elif isinstance(document, str):
        text = document.strip()
    else:
        got = type(document).__name__
        raise InputError(f"document {number} is {got}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"document {number} holds half a surrogate pair at character {error.start}; "
            "expected valid Unicode text"
        ) from error
    return encode_pieces(text, tokenizer) if text else iter(())
