"""What sources of files and of records share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from spectrim.errors import InputError

DEFAULT_FIELD = "text"


def existing_file(spec: str) -> Path:
    """The file at `spec`. Raises InputError for a missing path or a directory."""
    path = home_expanded(spec)
    if os.path.isdir(path):
        raise InputError(f"'{spec}' is a directory; give one file of text inside it")
    if not os.path.isfile(path):
        raise InputError(
            f"no such file: '{spec}'; check the path, or give 'python' or 'hf:...'"
        )
    return path


def home_expanded(spec: str) -> Path:
    """As `Path.expanduser`, but a user that does not exist is no error."""
    return Path(os.path.expanduser(spec))


def path_and_field(spec: str, suffixes: tuple[str, ...]) -> tuple[str, str | None] | None:
    """`data.jsonl:question` -> (`data.jsonl`, `question`); None for any other suffix."""
    endings = "|".join(re.escape(suffix) for suffix in suffixes)
    parsed = re.fullmatch(rf"(.+(?:{endings}))(?::([^:/\\]+))?", spec, re.I | re.S)
    return (parsed[1], parsed[2]) if parsed else None


def text_of(record: dict[str, Any], field: str, where: str) -> str:
    """`record[field]`. Raises InputError naming `where` for a missing or non-text field."""
    if field not in record:
        known = ", ".join(sorted(map(str, record))) or "none"
        raise InputError(f"{where} has no field '{field}'; its fields: {known}")
    if not isinstance(record[field], str):
        got = type(record[field]).__name__
        raise InputError(f"{where}: field '{field}' is {got}, expected a string")
    return record[field]


def non_empty(texts: list[str]) -> list[str]:
    return [stripped for text in texts if (stripped := text.strip())]
