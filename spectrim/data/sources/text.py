"""A local text file; `<|endoftext|>` separates documents where it occurs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spectrim.data.sources._records import COMPRESSED, existing_file, open_text
from spectrim.errors import InputError

FORM = "PATH.txt (also .raw, .tokens; .gz, .zst)"
COMMAND = "spectrim compress MODEL -o OUT --data corpus.txt"
SUFFIXES = tuple(
    f"{suffix}{compressed}"
    for compressed in COMPRESSED
    for suffix in (".txt", ".raw", ".tokens")
)
SEPARATOR = "<|endoftext|>"
MOST_BYTES_AT_ONCE = 2**28
"""A larger file is read piece by piece, as it is needed."""
LONGEST_PART = 2**24
_CHUNK = 2**20


def matches(spec: str) -> bool:
    return spec.lower().endswith(SUFFIXES)


def first_documents(spec: str, field: str | None) -> list[str]:
    """Return the beginning of the file. Raises InputError as `documents` does."""
    _check_field(spec, field)
    with open_text(spec) as file:
        return [part for part in (file.read(_CHUNK).strip(), file.read(1)) if part]


def documents(spec: str, field: str | None) -> Iterable[str]:
    """Return the stripped, non-empty documents; one when the file has no separator.

    Of a file above `MOST_BYTES_AT_ONCE` an iterator reads as much as is needed, and cuts a
    longer document into parts of `LONGEST_PART` characters, between words. Raises InputError
    for a missing file, text that is not UTF-8, and a given `field`.
    """
    _check_field(spec, field)
    if existing_file(spec).stat().st_size > MOST_BYTES_AT_ONCE:
        return _streamed(spec)
    with open_text(spec) as file:
        return list(_stripped(file.read().split(SEPARATOR)))


def _check_field(spec: str, field: str | None) -> None:
    if field is not None:
        raise InputError(
            f"'{spec}' is plain text and has no field '{field}'; leave the field out"
        )


def _streamed(spec: str) -> Iterator[str]:
    with open_text(spec) as file:
        rest = ""
        while chunk := file.read(_CHUNK):
            *whole, rest = (rest + chunk).split(SEPARATOR)
            yield from _stripped(whole)
            if len(rest) > LONGEST_PART:
                end = _last_space(rest)
                yield from _stripped([rest[:end]])
                rest = rest[end:]
        yield from _stripped([rest])


def _last_space(text: str) -> int:
    """Return where to cut near the end, outside of words and of a separator."""
    found = max(text.rfind("\n", 0, -len(SEPARATOR)), text.rfind(" ", 0, -len(SEPARATOR)))
    return found if found > 0 else len(text) - len(SEPARATOR)


def _stripped(parts: Iterable[str]) -> Iterator[str]:
    return (stripped for part in parts if (stripped := part.strip()))
