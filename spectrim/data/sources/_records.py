"""Functions shared by sources of files and of records."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from spectrim.data.conversation import FIELDS, Conversation, read_conversation
from spectrim.errors import InputError

DEFAULT_FIELD = "text"
FIRST_RECORDS = 1000
"""Records that are read before a model is, to find what is wrong with them."""
COMPRESSED = ("", ".gz", ".zst")
"""Suffixes of compression that may follow that of a text or JSON file."""
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
_USUAL = {DEFAULT_FIELD, *FIELDS}
Document = str | Conversation | None


def existing_file(spec: str) -> Path:
    """Return the file at `spec`. Raises InputError for a missing path or a directory."""
    path = home_expanded(spec)
    if os.path.isdir(path):
        raise InputError(f"'{spec}' is a directory; give a file, or the directory as --data")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"'{spec}' is no regular file; write its text to one")
    if not os.path.isfile(path):
        raise InputError(
            f"no such file: '{spec}'; check the path, or give 'python' or 'hf:...'"
        )
    return path


def home_expanded(spec: str) -> Path:
    """Expand the home directory as `Path.expanduser`, keeping an unknown user's path."""
    return Path(os.path.expanduser(spec))


@contextmanager
def open_text(spec: str) -> Iterator[TextIO]:
    """Open a file of UTF-8 text, compressed where its name says so. Raises InputError."""
    path = existing_file(spec)
    try:
        with _byte_stream(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        found = f"0x{error.object[error.start]:02x}"
        raise InputError(
            f"'{spec}' is not UTF-8 text (it has a byte {found}); {_remedy(path)}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"'{spec}' cannot be read: {error}") from error


def _remedy(path: Path) -> str:
    """Return what to do with a file that holds something else than UTF-8 text."""
    with path.open("rb") as file:
        begin = file.read(4)
    for suffix, magic in _MAGIC.items():
        if begin.startswith(magic):
            return f"it begins like a {suffix} file: rename it to {path.name}{suffix}"
    return "convert it, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW"


def _byte_stream(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)
    if suffix != ".zst":
        return path.open("rb")
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(
            f"reading '{path.name}' needs pyarrow: pip install 'spectrim[data]'"
        ) from error
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


def path_and_field(spec: str, suffixes: tuple[str, ...]) -> tuple[str, str | None] | None:
    """Split `data.jsonl:question` into path and field; None for any other suffix."""
    endings = "|".join(re.escape(suffix) for suffix in suffixes)
    parsed = re.fullmatch(rf"(.+(?:{endings}))(?::([^:/\\]+))?", spec, re.I | re.S)
    return (parsed[1], parsed[2]) if parsed else None


def document_of(record: dict[str, Any], field: str | None, where: str) -> Document:
    """Return the text or the conversation of a record, None where its field is null.

    Without a `field`: "text", else one of `conversation.FIELDS`. Raises InputError naming
    `where` for a missing field and for what is neither.
    """
    known = {key for key, value in record.items() if value is not None} & _USUAL
    name = field or field_among(known or record)
    value = record.get(name, "")
    if value is None:
        return None
    if name in FIELDS and isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, list) and (name in FIELDS or all(isinstance(v, dict) for v in value)):
        return read_conversation(value, where)
    return text_of(record, name, where).strip()


def _parsed(text: str) -> Any:
    """Return the conversation that is stored as a string of JSON, else the string."""
    try:
        return json.loads(text) if text.lstrip().startswith("[") else text
    except (ValueError, RecursionError):
        return text


def field_among(names: Iterable[str]) -> str:
    """Return the field to read where none is named."""
    known = set(names)
    return next((name for name in (DEFAULT_FIELD, *FIELDS) if name in known), DEFAULT_FIELD)


def text_of(record: dict[str, Any], field: str, where: str) -> str:
    """Return `record[field]`. Raises InputError naming `where` for what is no text."""
    if field not in record:
        known = ", ".join(sorted(map(str, record))) or "none"
        raise InputError(
            f"{where} has no field '{field}'; its fields: {known}; name the one to read"
        )
    if not isinstance(record[field], str):
        got = type(record[field]).__name__
        raise InputError(f"{where}: field '{field}' is {got}, expected a string")
    return record[field]


def without_empty(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents but empty texts; None (a null field) stays, to be counted."""
    return (document for document in documents if document != "")
