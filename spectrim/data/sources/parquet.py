"""A local Parquet file: one column of it holds the documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spectrim.data.sources._records import (
    FIRST_RECORDS,
    Document,
    document_of,
    existing_file,
    field_among,
    path_and_field,
    without_empty,
)
from spectrim.errors import InputError

FORM = "PATH.parquet[:FIELD]"
COMMAND = "spectrim compress MODEL -o OUT --data corpus.parquet:text"
SUFFIXES = (".parquet",)


def matches(spec: str) -> bool:
    return path_and_field(spec, SUFFIXES) is not None


def first_documents(spec: str, field: str | None) -> list[Document]:
    """Return the documents of the first rows. Raises InputError as `documents` does."""
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    with _opened(path) as (parquet, file), parquet.ParquetFile(file) as opened:
        name = _column_among(opened.schema_arrow.names, field or named, path)
        some = next(opened.iter_batches(FIRST_RECORDS, columns=[name]), None)
    rows = [] if some is None else some.column(0).to_pylist()
    return _of_rows(rows, name, path)


def documents(spec: str, field: str | None) -> list[Document]:
    """Return the column (`field`, else the spec's, else the usual one), row by row.

    Raises InputError when pyarrow is missing, the file is not Parquet, or the column is
    missing or neither text nor conversations.
    """
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    name, rows = _column(path, field or named)
    return _of_rows(rows, name, path)


def _of_rows(rows: Sequence[object], name: str, path: str) -> list[Document]:
    places = (f"'{path}' row {number}" for number in range(1, len(rows) + 1))
    pairs = zip(rows, places, strict=True)
    return list(without_empty(document_of({name: row}, name, where) for row, where in pairs))


def open_records(spec: str) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
    """Return where it stands and the row, for every one, and the spec's field."""
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    with _opened(path) as (parquet, file):
        rows = parquet.read_table(file).to_pylist()
    return [(f"'{path}' row {number}", row) for number, row in enumerate(rows, start=1)], named


def _column(path: str, field: str | None) -> tuple[str, list[object]]:
    with _opened(path) as (parquet, file):
        name = _column_among(parquet.read_schema(file).names, field, path)
        return name, parquet.read_table(file, columns=[name]).column(name).to_pylist()


def _column_among(names: list[str], field: str | None, path: str) -> str:
    name = field or field_among(names)
    if name not in names:
        known = ", ".join(sorted(names)) or "none"
        raise InputError(f"'{path}' has no column '{name}'; its columns: {known}")
    return name


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Path]]:
    """Yield pyarrow's reader and the file; what it raises is one line."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            "reading Parquet needs pyarrow: pip install 'spectrim[data]'"
        ) from error
    file = existing_file(path)
    try:
        yield parquet, file
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' cannot be read as Parquet: {error}") from error
