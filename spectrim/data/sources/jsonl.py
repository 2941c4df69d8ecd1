"""A local file of JSON: one object per line, or one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from spectrim.data.sources._records import (
    COMPRESSED,
    FIRST_RECORDS,
    Document,
    document_of,
    open_text,
    path_and_field,
    without_empty,
)
from spectrim.errors import InputError

FORM = "PATH.jsonl[:FIELD] (also .json with an object per line or one array; .gz, .zst)"
COMMAND = "spectrim compress MODEL -o OUT --data corpus.jsonl:text"
SUFFIXES = tuple(
    f"{suffix}{compressed}" for compressed in COMPRESSED for suffix in (".jsonl", ".json")
)


def matches(spec: str) -> bool:
    return path_and_field(spec, SUFFIXES) is not None


def first_documents(spec: str, field: str | None) -> list[Document]:
    """Return the documents of the first objects. Raises InputError as `documents` does."""
    return list(islice(_documents(spec, field), FIRST_RECORDS))


def documents(spec: str, field: str | None) -> list[Document]:
    """Return the field (`field`, else the spec's, else the usual one) of every object.

    Raises InputError with the line number for a broken line or a missing field.
    """
    return list(_documents(spec, field))


def _documents(spec: str, field: str | None) -> Iterator[Document]:
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    wanted = field or named
    return without_empty(document_of(r, wanted, where) for where, r in records(path))


def open_records(spec: str) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
    """Return where it stands and the object, for every one, and the spec's field."""
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    return list(records(path)), named


def records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where it stands and the object, for every one. Raises InputError."""
    with open_text(path) as lines:
        head = list(_up_to_text(lines))
        if head and head[-1].lstrip().startswith("[") and ".jsonl" not in path.lower():
            yield from _array(head[-1] + lines.read(), path)
        else:
            yield from _lines(chain(head, lines), path)


def _up_to_text(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines up to the first one that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _lines(lines: Iterator[str], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"'{path}' line {number}"
            yield where, parse(line, where, "one object per line")


def _array(text: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in enumerate(_load(text, f"'{path}'", "an array of objects"), start=1):
        where = f"'{path}' item {number}"
        yield where, _object(record, where, "an object")


def parse(text: str, where: str, expected: str) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises InputError naming `where` and `expected`."""
    return _object(_load(text, where, expected), where, expected)


def _load(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); expected {expected}") from error


def _object(value: Any, where: str, expected: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        got = type(value).__name__
        raise InputError(f"{where} is a JSON {got}; expected {expected}")
    return value
