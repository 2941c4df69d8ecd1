"""Warnings that belong to a result: recorded while it is made, repeated when it is reused."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spectrim.errors import NumericalWarning

_ROOT = str(Path(__file__).parents[1])
_CATEGORIES = {kind.__name__: kind for kind in (UserWarning, NumericalWarning)}


@contextmanager
def recorded_warnings() -> Iterator[list[list[str]]]:
    """Yield a list that receives category and text of spectrim's own warnings, as JSON values.

    They are shown as usual.
    """
    given: list[list[str]] = []
    with warnings.catch_warnings():
        show: Any = warnings.showwarning

        def note(message: Any, category: Any, filename: str, *rest: Any) -> None:
            own = category is NumericalWarning or filename.startswith(_ROOT)
            entry = [category.__name__, str(message)]
            if own and entry[0] in _CATEGORIES and entry not in given:
                given.append(entry)
            show(message, category, filename, *rest)

        warnings.showwarning = note  # type: ignore[assignment]
        yield given


def repeat_warnings(recorded: Iterable[Iterable[str]]) -> None:
    """Give recorded warnings again, each once."""
    for category, text in dict.fromkeys(tuple(entry) for entry in recorded):
        warnings.warn(text, _CATEGORIES.get(category, UserWarning), stacklevel=3)
