"""A local Parquet file: one column of it holds the documents."""

from __future__ import annotations

from spectrim.data.sources._records import (
    DEFAULT_FIELD,
    existing_file,
    non_empty,
    path_and_field,
    text_of,
)
from spectrim.errors import InputError

FORM = "PATH.parquet[:FIELD]"
COMMAND = "spectrim compress MODEL -o OUT --data corpus.parquet:text"
SUFFIXES = (".parquet",)


def matches(spec: str) -> bool:
    return path_and_field(spec, SUFFIXES) is not None


def documents(spec: str, field: str | None) -> list[str]:
    """The column (`field`, else the spec's, else "text"), row by row.

    Raises InputError when pyarrow is missing, the file is not Parquet, or the column is
    missing or not text.
    """
    path, named = path_and_field(spec, SUFFIXES) or (spec, None)
    wanted = field or named or DEFAULT_FIELD
    rows = _column(path, wanted)
    texts = [
        text_of({wanted: value}, wanted, f"'{path}' row {number}")
        for number, value in enumerate(rows, start=1)
    ]
    return non_empty(texts)


def _column(path: str, field: str) -> list[object]:
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
        if field not in names:
            known = ", ".join(sorted(names)) or "none"
            raise InputError(f"'{path}' has no column '{field}'; its columns: {known}")
        return parquet.read_table(file, columns=[field]).column(field).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' cannot be read as Parquet: {error}") from error
