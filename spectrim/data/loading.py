"""From what the user typed (`--data`, `--eval`) to documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from spectrim.errors import InputError
from spectrim.registry import Registry

SOURCES = Registry("data source", "spectrim.data.sources")


def open_documents(spec: str, field: str | None = None) -> Iterable[str]:
    """The documents of `spec`: a list when in memory, an iterator when they stream.

    `field` wins over a field named in the spec. Raises InputError.
    """
    return _source(spec).documents(spec, field)


def load_documents(spec: str, field: str | None = None) -> list[str]:
    """All documents of `spec`; of a streamed data set this downloads the whole split.

    Raises InputError for a spec no source knows, and for text without any document.
    """
    documents = list(open_documents(spec, field))
    if not documents:
        raise InputError(f"'{spec}' holds no text: every document is empty")
    return documents


def _source(spec: str) -> ModuleType:
    sources = [SOURCES.get(name) for name in SOURCES.names()]
    for source in sources:
        if source.matches(spec):
            return source
    shown = spec if len(spec) <= 80 else f"{spec[:77]}..."
    if len(spec) < 4096 and "\0" not in spec and Path(spec).is_dir():
        raise InputError(f"'{shown}' is a directory; give one file of text inside it")
    forms = "; ".join(source.FORM for source in sources)
    raise InputError(f"cannot tell what text '{shown}' means; expected one of: {forms}")
