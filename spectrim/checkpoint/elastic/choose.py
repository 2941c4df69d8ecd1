"""The size of an elastic checkpoint that a budget, a loss or a number of bytes asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import convert_file_size_to_int

from spectrim.checkpoint.elastic.entry import check_elastic, sizes_of
from spectrim.checkpoint.elastic.stored import BUDGET
from spectrim.errors import InputError

WISHES = ("budget", "target_loss", "size")
"""Options of `load` that choose a size; one of them at a time."""


def take_budget(
    options: dict[str, Any], config: Mapping[str, Any], itemsize: int, name: str | Path
) -> dict[str, Any]:
    """Return `options` with the budget for `from_pretrained` in place of the wishes.

    Args:
        config: the checkpoint's config.json.
        itemsize: bytes of a stored number.

    Raises:
        InputError: the checkpoint is not elastic, or has no such size.
    """
    wishes = {wish: options.pop(wish) for wish in WISHES if wish in options}
    wishes = {wish: value for wish, value in wishes.items() if value is not None}
    if not wishes:
        return options
    if len(wishes) > 1:
        raise InputError(f"give one of {' and '.join(wishes)}")
    entry = (config.get("quantization_config") or {}).get("elastic")
    if entry is None:
        raise InputError(
            f"{name} has one size; only a checkpoint of `spectrim compress --elastic` is cut "
            f"to a {next(iter(wishes)).replace('_', ' ')} when it is loaded"
        )
    check_elastic(entry)
    return options | {BUDGET: _budget(entry, itemsize, wishes)}


def _budget(entry: dict[str, Any], itemsize: int, wishes: Mapping[str, Any]) -> float:
    sizes = sizes_of(entry)
    if (budget := wishes.get("budget")) is not None:
        sizes.ranks(_number("budget", budget))
        return float(budget)
    if (target := wishes.get("target_loss")) is not None:
        return sizes.budget_for_loss(_number("target_loss", target))
    weights = _bytes(wishes["size"]) / itemsize - entry["other_weights"]
    return sizes.budget_for_weights(weights)


def _bytes(size: int | str) -> int:
    try:
        return convert_file_size_to_int(size)
    except ValueError as error:
        raise InputError(f"size {size!r}: expected bytes like 300MiB or 2GB") from error


def _number(wish: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{wish} is {value!r}, expected a number")
    return float(value)
