"""Draws that are the same for every Python version, by `Random.random` alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def generator(key: str) -> Random:
    return Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))


def between(random: Random, low: int, high: int) -> int:
    """Return an integer from `low` to `high`, both included; `high >= low`."""
    return low + int(random.random() * (high - low + 1))


def one_of(random: Random, choices: Sequence[T]) -> T:
    return choices[between(random, 0, len(choices) - 1)]
