"""Several files: a directory with all below it, or a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from spectrim.data.sources import jsonl, parquet, text
from spectrim.data.sources._records import Document, home_expanded, path_and_field
from spectrim.errors import InputError

FORM = "a DIRECTORY of such files, or a pattern like 'DIR/*.jsonl[:FIELD]'"
COMMAND = "spectrim compress MODEL -o OUT --data 'corpus/*.jsonl'"
_KINDS = (jsonl, parquet, text)
_KINDS_OF_RECORDS = (jsonl, parquet)
Record = tuple[str, dict[str, Any]]
_RECORDS = (*jsonl.SUFFIXES, *parquet.SUFFIXES)
_NOT_FILES = ("hf:", "python")
MOST_BYTES_AT_ONCE = 2**28
"""Files of more are read one after the other, as they are needed."""


def matches(spec: str) -> bool:
    if not spec.strip() or spec.startswith(_NOT_FILES):
        return False
    return os.path.isdir(home_expanded(spec)) or _is_pattern(spec)


def documents(spec: str, field: str | None) -> Iterable[Document]:
    """Return the documents of all files, in the order of their paths.

    A list where the files are small enough to be read at once, else an iterator. Raises
    InputError where there is no file, and what the sources of single files raise.
    """
    kinds, named = _files(spec, _KINDS)
    wanted = field or named
    stream = chain.from_iterable(kind.documents(path, wanted) for path, kind in kinds)
    small = sum(os.path.getsize(path) for path, _ in kinds) <= MOST_BYTES_AT_ONCE
    return list(stream) if small else stream


def first_documents(spec: str, field: str | None) -> list[Document]:
    """Return those of the first file that has any. Raises InputError as `documents` does."""
    kinds, named = _files(spec, _KINDS)
    some = (kind.first_documents(path, field or named) for path, kind in kinds)
    return next((found for found in some if found), [])


def open_records(spec: str) -> tuple[Iterable[Record], str | None]:
    """Return the records of all files of JSON and Parquet, and the pattern's field."""
    kinds, named = _files(spec, _KINDS_OF_RECORDS)
    return chain.from_iterable(kind.open_records(path)[0] for path, kind in kinds), named


def _files(spec: str, among: tuple[Any, ...]) -> tuple[list[tuple[str, Any]], str | None]:
    """Return the files with the source of each, and the field that the spec names."""
    pattern, named = path_and_field(spec, _RECORDS) or (spec, None)
    paths = _files_below(spec) if os.path.isdir(home_expanded(spec)) else _files_like(pattern)
    kinds = [(path, kind) for path in paths for kind in among if kind.matches(path)]
    if not kinds:
        forms = "; ".join(kind.FORM for kind in among)
        raise InputError(f"'{spec}' holds no file of text; expected some of: {forms}")
    return kinds, named


def _is_pattern(spec: str) -> bool:
    return glob.has_magic(spec) and not os.path.exists(home_expanded(spec))


def _files_like(pattern: str) -> list[str]:
    found = glob.iglob(str(home_expanded(pattern)), recursive=True)
    return sorted(path for path in found if os.path.isfile(path))


def _files_below(directory: str) -> list[str]:
    """Return the paths of all files, but for hidden ones and those in hidden directories."""
    root = home_expanded(directory)
    found = (path for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not _is_hidden(path.relative_to(root)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
