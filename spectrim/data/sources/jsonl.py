"""A local JSON-lines file: one object per line, one field of it the document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from spectrim.data.sources._records import (
    DEFAULT_FIELD,
    existing_file,
    non_empty,
    path_and_field,
    text_of,
)
from spectrim.errors import InputError

FORM = "PATH.jsonl[:FIELD] (also .json with one object per line)"
COMMAND = "spectrim compress MODEL -o OUT --data corpus.jsonl:text"
SUFFIXES = (".jsonl", ".json")


def matches(spec: str) -> bool:
    return path_and_field(spec, SUFFIXES) is not None


def documents(spec: str, field: str | None) -> list[str]:
    """The field (`field`, else the spec's, else "text") of every line; blank lines are skipped.

    Raises InputError with the line number for a broken line or a missing field.
    """
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    wanted = field or named or DEFAULT_FIELD
    return non_empty([text_of(record, wanted, where) for where, record in records(path)])


def records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where it stands and the object, for every line that is not blank. Raises InputError."""
    try:
        with existing_file(path).open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"'{path}' line {number}"
                    yield where, parse(line, where, "one object per line")
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text (byte {error.start})") from error


def parse(text: str, where: str, expected: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises InputError naming `where` and what was `expected`."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); expected {expected}") from error
    if not isinstance(record, dict):
        got = type(record).__name__
        raise InputError(f"{where} is a JSON {got}; expected {expected}")
    return record
