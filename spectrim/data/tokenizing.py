"""Turn documents into tokens: their order, what the tokenizer adds, and no more than needed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from spectrim.errors import InputError

_SAMPLE = "a"
SHUFFLE_POOL = 10_000
"""Documents of a stream that are shuffled; what is in memory is shuffled whole."""


def in_order(documents: Iterable[str], seed: int | None) -> Iterable[str]:
    """`documents` as they come (`seed=None`) or shuffled; a stream within its first pool."""
    if seed is None:
        return documents
    rest = iter(documents)
    whole = isinstance(documents, list | tuple)
    pool = list(rest) if whole else list(islice(rest, SHUFFLE_POOL))
    random.Random(seed).shuffle(pool)
    return chain(pool, rest)


def read_tokens(
    documents: Iterable[str], tokenizer: Any, limit: int, before: Sequence[int] = ()
) -> tuple[list[list[int]], int]:
    """Tokenize documents, each after the tokens `before`, up to `limit` tokens in all.

    Returns:
        The tokens by document, and how many documents had none.

    Raises:
        InputError: A document is not text.
    """
    kept: list[list[int]] = []
    skipped, left = 0, limit
    for number, document in enumerate(documents, start=1):
        tokens = _encode(document, number, tokenizer)
        if not tokens:
            skipped += 1
            continue
        kept.append([*before, *tokens][:left])
        left -= len(kept[-1])
        if left <= 0:
            break
    return kept, skipped


def leading_tokens(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer itself puts before a text.

    They are what stands before the plain tokens of a short text when special tokens are added:
    BOS for most models, nothing for some, several for a few.
    """
    whole = list(tokenizer(_SAMPLE, verbose=False)["input_ids"])
    plain = list(tokenizer(_SAMPLE, add_special_tokens=False, verbose=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
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
    return leading_tokens(tokenizer) or _encode_plain("\n\n", tokenizer)


def _encode(document: str, number: int, tokenizer: Any) -> list[int]:
    if not isinstance(document, str):
        got = type(document).__name__
        raise InputError(f"document {number} is {got}, expected a string")
    try:
        document.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"document {number} holds half a surrogate pair at character {error.start}; "
            "expected valid Unicode text"
        ) from error
    text = document.strip()
    return _encode_plain(text, tokenizer) if text else []


def _encode_plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
