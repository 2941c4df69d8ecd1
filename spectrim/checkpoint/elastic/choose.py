"""The size of an elastic checkpoint that a budget, a loss or a number of bytes asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.utils import convert_file_size_to_int

from spectrim.allocation import NestedSizes
from spectrim.errors import InputError

WISHES = ("budget", "target_loss", "size")
"""Options of `load` that choose a size; one of them at a time."""


def choose_budget(
    sizes: NestedSizes, wishes: Mapping[str, Any], itemsize: int, other_weights: int
) -> float:
    """Return the fraction of the layers' weights that one of `WISHES` asks for.

    Args:
        itemsize: bytes of a stored number.
        other_weights: numbers that are stored besides the layers'.

    Raises:
        InputError: there are two wishes, or no such size.
    """
    if len(wishes) > 1:
        raise InputError(f"give one of {' and '.join(wishes)}")
    [(wish, value)] = wishes.items()
    if wish == "size":
        return sizes.budget_for_weights(_bytes(value) / itemsize - other_weights)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{wish} is {value!r}, expected a number")
    if wish == "target_loss":
        return sizes.budget_for_loss(value)
    sizes.ranks(value)
    return float(value)


def _bytes(size: int | str) -> int:
    try:
        return convert_file_size_to_int(size)
    except ValueError as error:
        raise InputError(f"size {size!r}: expected bytes like 300MiB or 2GB") from error
