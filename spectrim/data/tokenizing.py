"""From documents to their tokens: order, BOS, and no more work than is needed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

from spectrim.errors import InputError

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
    documents: Iterable[str], tokenizer: Any, limit: int
) -> tuple[list[list[int]], int]:
    """The first `limit` tokens, by document, and how many documents had none.

    Raises InputError for a document that is not text.
    """
    bos = leading_tokens(tokenizer)
    kept: list[list[int]] = []
    skipped, left = 0, limit
    for number, document in enumerate(documents, start=1):
        tokens = _encode(document, number, tokenizer)
        if not tokens:
            skipped += 1
            continue
        kept.append((bos + tokens)[:left])
        left -= len(kept[-1])
        if left <= 0:
            break
    return kept, skipped


def leading_tokens(tokenizer: Any) -> list[int]:
    """What goes before each document: BOS, else EOS, else nothing."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    return []


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
    if not text:
        return []
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
