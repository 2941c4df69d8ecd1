"""A local Parquet file: one column of it holds the documents."""

from __future__ import annotations

from spectrim.data.sources._records import (
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


def check_place(spec: str) -> None:
    """Raise InputError for a file that is not there."""
    existing_file((path_and_field(spec, SUFFIXES) or (spec, None))[0])


def documents(spec: str, field: str | None) -> list[Document]:
    """Return the column (`field`, else the spec's, else the usual one), row by row.

    Raises InputError when pyarrow is missing, the file is not Parquet, or the column is
    missing or neither text nor conversations.
    """
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    name, rows = _column(path, field or named)
    places = (f"'{path}' row {number}" for number in range(1, len(rows) + 1))
    pairs = zip(rows, places, strict=True)
    return list(without_empty(document_of({name: row}, name, where) for row, where in pairs))


def _column(path: str, field: str | None) -> tuple[str, list[object]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            "reading Parquet needs pyarrow: pip install 'spectrim[data]'"
        ) from error
    file = existing_file(path)
    try:
        names = parquet.read_schema(file).names
        name = field or field_among(names)
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise InputError(f"'{path}' has no column '{name}'; its columns: {known}")
        return name, parquet.read_table(file, columns=[name]).column(name).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' cannot be read as Parquet: {error}") from error
