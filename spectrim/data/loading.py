"""Documents from the texts of an option (`--data`, `--eval`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple

from spectrim.data.conversation import Conversation
from spectrim.data.sources import FIRST_RECORDS
from spectrim.errors import InputError
from spectrim.registry import Registry

SOURCES = Registry("data source", "spectrim.data.sources")
DEFAULT_TEXT = "python"
"""The sources of the running Python: text where none is named."""
BETWEEN_PARTS = " + "
"""`wiki.txt@0.7 + chat.jsonl@0.3` names two texts, and the shares of the rows they give."""
_WITH_SHARE = re.compile(r"(.+)@([0-9]*\.?[0-9]+)", re.S)

Document = str | Conversation | None
"""Text, a conversation for the chat template, or None for a record whose field is null."""


Record = tuple[str, dict[str, Any]]
"""Where it stands, and the record."""


class Records(NamedTuple):
    """Whole records of a spec, and the field that it names, None without one."""

    records: Iterable[Record]
    field: str | None = None


class Part(NamedTuple):
    """One text of a spec; `share`: the number after `@`, None without one."""

    spec: str
    share: float | None = None


def split_spec(spec: str) -> list[Part]:
    """Return the texts that `spec` names. Raises InputError for a share of nothing."""
    if os.path.exists(os.path.expanduser(spec)):
        return [Part(spec)]
    return [_part(one) for one in spec.split(BETWEEN_PARTS)]


def join_specs(specs: Sequence[str]) -> str:
    """Return the one spec of several texts."""
    return BETWEEN_PARTS.join(specs)


def open_documents(spec: str, field: str | None = None) -> Iterable[Document]:
    """Return the documents of `spec`: a list when in memory, an iterator when they stream.

    `field` wins over a field named in the spec. Raises InputError.
    """
    parts = [_source(part.spec).documents(part.spec, field) for part in split_spec(spec)]
    return parts[0] if len(parts) == 1 else chain.from_iterable(parts)


def open_records(spec: str) -> Records:
    """Return the records of one spec, with all of their fields.

    A list when in memory, an iterator when they stream. Raises InputError for plain text.
    """
    source = _source(spec)
    if _has_records(source):
        return Records(*source.open_records(spec))
    forms = "; ".join(s.FORM for s in map(SOURCES.get, SOURCES.names()) if _has_records(s))
    raise InputError(f"'{spec}' is text without fields; examples with labels need {forms}")


def _has_records(source: ModuleType) -> bool:
    return hasattr(source, "open_records")


def first_documents(spec: str, field: str | None = None) -> list[Document]:
    """Return the first documents of every local text: so many that reading them takes no time.

    Raises InputError for a text that no source knows, and for local files whose beginning
    cannot be read or holds no text.
    """
    found: list[Document] = []
    for part in split_spec(spec):
        source = _source(part.spec)
        if hasattr(source, "first_documents"):
            some = source.first_documents(part.spec, field)
            if len(some) < FIRST_RECORDS and all(document is None for document in some):
                raise InputError(f"'{part.spec}' holds no text: every document is empty")
            found += some
    return found


def load_documents(spec: str, field: str | None = None) -> list[str | Conversation]:
    """Return all documents of `spec`; of a streamed data set this downloads the whole split.

    Records whose field is null are left out. Raises InputError for a spec no source knows,
    and for text without any document.
    """
    documents = [document for document in open_documents(spec, field) if document is not None]
    if not documents:
        raise InputError(f"'{spec}' holds no text: every document is empty")
    return documents


def _part(spec: str) -> Part:
    parsed = _WITH_SHARE.fullmatch(spec)
    if parsed is None or os.path.exists(os.path.expanduser(spec)):
        return Part(spec)
    if not float(parsed[2]) > 0:
        raise InputError(f"'{spec}': the share is {parsed[2]}, expected more than 0")
    return Part(parsed[1], float(parsed[2]))


def _source(spec: str) -> ModuleType:
    sources = [SOURCES.get(name) for name in SOURCES.names()]
    for source in sources:
        if source.matches(spec):
            return source
    shown = spec if len(spec) <= 80 else f"{spec[:77]}..."
    forms = "; ".join(source.FORM for source in sources)
    raise InputError(f"cannot tell what text '{shown}' means; expected one of: {forms}")
