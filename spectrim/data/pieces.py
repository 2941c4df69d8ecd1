"""Tokens of a long text in pieces, so that no more of it is tokenized than is read.

Windows of the text overlap. Where two windows meet, the tokens change over at a place in the
middle of the overlap from which on both agree: what a tokenizer does there depends on the
text nearby only, so the pieces together are the tokens of the whole text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

WINDOW = 200_000
OVERLAP = 4_000
"""Characters. A text shorter than both together is tokenized at once."""
_AGREEING = 8
"""Tokens that two windows have in common where they meet."""


class _Window(NamedTuple):
    ids: list[int]
    starts: list[int]


def encode(text: str, tokenizer: Any) -> list[int]:
    """Return the tokens of `text` without special ones."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode_pieces(text: str, tokenizer: Any) -> Iterator[list[int]]:
    """Yield the tokens of `text` without special ones, piece by piece."""
    if len(text) <= WINDOW + OVERLAP or not getattr(tokenizer, "is_fast", False):
        yield encode(text, tokenizer)
        return
    start, first = 0, 0
    window = _window(text, start, tokenizer)
    while start + WINDOW + OVERLAP < len(text):
        start += WINDOW
        following = _window(text, start, tokenizer)
        seam = _seam(window, following, start)
        if seam is None:  # no place where they agree: the rest at once
            yield encode(text[start - WINDOW :], tokenizer)[first:]
            return
        yield window.ids[first : seam[0]]
        window, first = following, seam[1]
    yield window.ids[first:]


def _window(text: str, start: int, tokenizer: Any) -> _Window:
    encoded = tokenizer(
        text[start : start + WINDOW + OVERLAP],
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    starts = [start + begin for begin, _ in encoded["offset_mapping"]]
    return _Window(list(encoded["input_ids"]), starts)


def _seam(left: _Window, right: _Window, start: int) -> tuple[int, int] | None:
    """Return where in `left` and in `right` the tokens agree, in the middle of the overlap."""
    low, high = start + OVERLAP // 4, start + 3 * OVERLAP // 4
    places: dict[int, int] = {}
    for index, place in enumerate(left.starts):
        if low <= place < high:
            places.setdefault(place, index)
    for index, place in enumerate(right.starts):
        if place >= high:
            return None
        there = places.get(place)
        if there is not None and _agree(left, there, right, index):
            return there, index
    return None


def _agree(left: _Window, i: int, right: _Window, j: int) -> bool:
    same = slice(i, i + _AGREEING), slice(j, j + _AGREEING)
    return (
        left.ids[same[0]] == right.ids[same[1]]
        and left.starts[same[0]] == right.starts[same[1]]
    )
