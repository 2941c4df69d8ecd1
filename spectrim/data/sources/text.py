"""A local text file; `<|endoftext|>` separates documents where it occurs."""

from __future__ import annotations

from spectrim.data.sources._records import COMPRESSED, open_text
from spectrim.errors import InputError

FORM = "PATH.txt (also .raw, .tokens; .gz, .zst)"
COMMAND = "spectrim compress MODEL -o OUT --data corpus.txt"
SUFFIXES = tuple(
    f"{suffix}{compressed}"
    for compressed in COMPRESSED
    for suffix in (".txt", ".raw", ".tokens")
)
SEPARATOR = "<|endoftext|>"


def matches(spec: str) -> bool:
    return spec.lower().endswith(SUFFIXES)


def documents(spec: str, field: str | None) -> list[str]:
    """Return the stripped, non-empty documents; one when the file has no separator.

    Raises InputError for a missing file, text that is not UTF-8, and a given `field`.
    """
    if field is not None:
        raise InputError(
            f"'{spec}' is plain text and has no field '{field}'; leave the field out"
        )
    with open_text(spec) as file:
        text = file.read()
    return [stripped for part in text.split(SEPARATOR) if (stripped := part.strip())]
