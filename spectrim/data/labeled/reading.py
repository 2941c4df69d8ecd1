"""Read examples from records: which fields, what is null or empty, and what fits no label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from spectrim.data.labeled.labels import Fields, Labels, named_fields, value_in
from spectrim.data.loading import Record, open_records, split_spec
from spectrim.data.sources import hub
from spectrim.data.tokenizing import in_order
from spectrim.errors import InputError

CHECKED_EARLY = 10_000
"""Records that are read before a model is, to find what is wrong with them."""


@dataclass(frozen=True)
class Example:
    """One or two texts with a label.

    Attributes:
        text: the source of a target, or the text of a class; a recording where its words are
            the target.
        second: a second text for the same class.
        label: a target text, the number of a class, or a score.
    """

    text: Any
    second: str | None
    label: Any


@dataclass
class Examples:
    """Examples as they are read, with the fields used and the records that were skipped.

    Attributes:
        records: what is read.
        named: the fields that the user names; None for the known ones of the first record.
        fields: names of the texts and of the label; () before the first record.
        null: records with a field that is null.
        empty: records with an empty text.
    """

    records: Iterable[Record]
    labels: Labels
    named: str | None = None
    fields: Fields = ()
    seen: int = 0
    null: int = 0
    empty: int = 0

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples. Raises InputError naming the record that is none."""
        for where, record in self.records:
            self.fields = self.fields or self._fields(record, where)
            self.seen += 1
            values = self._values(record, where)
            if None in values:
                self.null += 1
            elif "" in values:
                self.empty += 1
            else:
                *texts, label = values
                second = texts[1] if len(texts) == 2 else None
                yield Example(texts[0], second, self.labels.read(label, where))

    def _fields(self, record: Mapping[str, Any], where: str) -> Fields:
        if self.named is not None:
            return named_fields(self.named, self.labels)
        if (fields := self.labels.fields_in(record)) is not None:
            return fields
        known = ", ".join(sorted(map(str, record))) or "none"
        raise InputError(
            f"{where}: cannot tell text and label by the fields' names ({known}); name them, "
            f"--field {self.labels.EXPECTED}"
        )

    def _values(self, record: Mapping[str, Any], where: str) -> list[Any]:
        *texts, label = self.fields
        return [
            *(self.labels.source(record, name, where) for name in texts),
            value_in(record, label, where),
        ]


def read_examples(
    spec: str, labels: Labels, named: str | None = None, seed: int | None = None
) -> Examples:
    """Return the examples of `spec`, in the order of the file or shuffled by `seed`.

    Args:
        spec: files of JSON or Parquet, or a data set of the Hub, as in `--data`.
        labels: what the model is trained to predict.
        named: fields to read; also after the file's name, `pairs.jsonl:a,b`.

    Raises:
        InputError: nothing to read, or text without records.
    """
    parts = split_spec(spec)
    if any(part.share is not None for part in parts):
        raise InputError(f"'{spec}': shares (@) are of texts; examples are read one by one")
    opened = [open_records(part.spec) for part in parts]
    records = opened[0].records
    if len(opened) > 1:
        records = [one for found in opened for one in found.records]
    named = named or next((found.field for found in opened if found.field), None)
    return Examples(in_order(records, seed), labels, named)


def check_examples(spec: str, labels: Labels, named: str | None = None) -> Fields:
    """Read the first records of local files as examples, and return their fields.

    Raises InputError for whatever `read_examples` would stop at, and where there is no example.
    """
    if any(hub.matches(part.spec) for part in split_spec(spec)):
        return ()
    examples = read_examples(spec, labels, named)
    examples.records = islice(examples.records, CHECKED_EARLY)
    check_count(examples, sum(1 for _ in examples), spec)
    return examples.fields


def check_count(examples: Examples, count: int, source: str) -> None:
    """Raise InputError where there is no example."""
    if count:
        return
    skipped = f" ({examples.null} with a null field, {examples.empty} with an empty text)"
    raise InputError(
        f"'{source}' holds no example: {examples.seen} records"
        f"{skipped if examples.seen else ''}"
    )
