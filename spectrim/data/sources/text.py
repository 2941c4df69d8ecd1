"""A local text file; `<|endoftext|>` separates documents where it occurs."""

from __future__ import annotations

from pathlib import Path

from spectrim.data.sources._records import existing_file, non_empty
from spectrim.errors import InputError

FORM = "PATH.txt (also .raw, .tokens)"
COMMAND = "spectrim compress MODEL -o OUT --data corpus.txt"
SUFFIXES = (".txt", ".raw", ".tokens")
SEPARATOR = "<|endoftext|>"


def matches(spec: str) -> bool:
    return Path(spec).suffix.lower() in SUFFIXES


def documents(spec: str, field: str | None) -> list[str]:
    """Stripped, non-empty documents; one when the file has no separator.

    Raises InputError for a missing file, text that is not UTF-8, and a given `field`.
    """
    if field is not None:
        raise InputError(
            f"'{spec}' is plain text and has no field '{field}'; leave the field out"
        )
    try:
        text = existing_file(spec).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"'{spec}' is not UTF-8 text (byte {error.start})") from error
    return non_empty(text.split(SEPARATOR))
