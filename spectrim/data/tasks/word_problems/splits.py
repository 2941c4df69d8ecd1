"""The split of a template or a tuple of numbers, decided by a hash."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "validation", "test")
_OF_TEN = ("train",) * 8 + ("validation", "test")


def split_of_template(key: str) -> str:
    return _split_of(f"template {key}")


def split_of_numbers(numbers: tuple[int, ...]) -> str:
    return _split_of(f"numbers {' '.join(map(str, numbers))}")


def _split_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return _OF_TEN[int.from_bytes(digest[:8], "big") % len(_OF_TEN)]
