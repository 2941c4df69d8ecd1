"""MATH: competition problems with solutions in LaTeX, the result in a box.

Read from JSON lines, the hub, or a directory of the official files (one object in each).
Source: Hendrycks et al., 2021, arXiv:2103.03874.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from spectrim.data.sources import home_expanded, jsonl
from spectrim.data.tasks.answer_parsing import extract_math
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.formats._records import HUB_FORM, Layout, Record, example, records
from spectrim.data.tasks.settings import TaskSettings
from spectrim.errors import InputError

FORM = f"math:PATH.jsonl, math:DIRECTORY or math:{HUB_FORM}"
COMMAND = "spectrim compress MODEL -o OUT --recipe task --task math:train.jsonl"
LAYOUT = Layout("problem", "solution", "Problem: {prompt}\nSolution: {answer}")


def matches(place: str) -> bool:
    return False


def examples(place: str, settings: TaskSettings) -> Iterator[TaskExample]:
    """Return examples with the last \\boxed{} as `final`. Raises InputError without one."""
    layout = LAYOUT.given(settings)
    for where, record in _problems(place):
        yield example(record, where, layout, extract_math, "\\boxed{...}")


def _problems(place: str) -> Iterator[tuple[str, Record]]:
    directory = home_expanded(place)
    return _files(directory) if os.path.isdir(directory) else records(place)


def _files(directory: Path) -> Iterator[tuple[str, Record]]:
    files = sorted(directory.rglob("*.json"), key=_order)
    if not files:
        raise InputError(f"no .json file in the directory '{directory}' or below it")
    for path in files:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"'{path}' is not UTF-8 text (byte {error.start})") from error
        yield f"'{path}'", jsonl.parse(text, f"'{path}'", "one object")


def _order(path: Path) -> tuple[str, int, str]:
    """By folder, then by number: 2.json before 10.json."""
    number = int(path.stem) if path.stem.isdecimal() and len(path.stem) < 20 else -1
    return str(path.parent), number, path.name
