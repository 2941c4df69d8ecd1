"""A dataset of the Hugging Face Hub, streamed by name with `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from spectrim.data.sources._records import Document, document_of, without_empty
from spectrim.errors import InputError

FORM = "hf:NAME[/CONFIG]:SPLIT[:FIELD]"
COMMAND = "spectrim compress MODEL -o OUT --data hf:Salesforce/wikitext/wikitext-2-raw-v1:train"
_SHAPE = re.compile(r"hf:((?:[^:/]+/)?[^:/]+)(?:/([^:/]+))?:([^:]+)(?::([^:]+))?")


class HubSpec(NamedTuple):
    name: str
    config: str | None
    split: str
    field: str | None


def matches(spec: str) -> bool:
    return spec.startswith("hf:")


def parse(spec: str) -> HubSpec:
    """Parse `hf:OWNER/NAME/CONFIG:SPLIT:FIELD`; two names are an owner and a dataset."""
    parsed = _SHAPE.fullmatch(spec)
    if parsed is None:
        raise InputError(
            f"cannot read '{spec}'; expected {FORM}, e.g. hf:Salesforce/wikitext/"
            "wikitext-2-raw-v1:test (a CONFIG needs the owner's name before NAME)"
        )
    return HubSpec(*parsed.groups())


def documents(spec: str, field: str | None) -> Iterator[Document]:
    """Return non-empty documents, downloaded as they are asked for.

    Raises InputError when `datasets` is missing, or the dataset cannot be reached or read.
    """
    wanted = parse(spec)
    name = field or wanted.field
    return without_empty(document_of(row, name, where) for where, row in records(wanted))


def open_records(spec: str) -> tuple[Iterator[tuple[str, dict[str, Any]]], str | None]:
    """Return where it stands and the row, streamed, and the spec's field."""
    wanted = parse(spec)
    return records(wanted), wanted.field


def records(wanted: HubSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return where it stands and the row, streamed; errors as for `documents`."""
    label = "/".join(filter(None, (wanted.name, wanted.config)))
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"the dataset '{label}' needs the package datasets: pip install 'spectrim[data]'"
        ) from error
    return _rows(datasets, wanted, label)


def _rows(
    datasets: object, wanted: HubSpec, label: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = datasets.load_dataset(  # type: ignore[attr-defined]
            wanted.name, wanted.config, split=wanted.split, streaming=True
        )
        for number, row in enumerate(rows, start=1):
            yield f"'{label}' row {number}", row
    except Exception as error:  # network, hub and reader each raise kinds of their own
        raise InputError(
            f"cannot read split '{wanted.split}' of the dataset '{label}' "
            f"({type(error).__name__}: {error}); check its name, configuration and split and "
            "the network, or give a local .txt, .jsonl or .parquet file"
        ) from error
