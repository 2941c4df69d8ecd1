"""The labels of examples: a target text, a class or a score, and the fields they are read from.

A kind of labels has `EXPECTED`, the fields in the form that `--field` takes,
`fields_in(record)`, the known fields of a record, and `read(value, where)`, the label that a
loss is computed with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from spectrim.errors import InputError, did_you_mean

Fields = tuple[str, ...]
"""Names of the texts, and of the label as the last; `a.b` is field b inside of field a."""

_PAIRS = (
    ("source", "target"),
    ("input", "output"),
    ("inputs", "targets"),
    ("input_text", "target_text"),
    ("document", "summary"),
    ("article", "highlights"),
    ("text", "summary"),
    ("dialogue", "summary"),
    ("question", "answer"),
    ("prompt", "completion"),
)
_TRANSLATION = "translation"
_TEXTS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text",),
    ("sentence",),
    ("content",),
    ("review",),
)
_RECORDINGS = ("audio", "file", "path", "audio_filepath")
_TRANSCRIPTS = ("text", "sentence", "transcription", "transcript", "normalized_text")
_LABELS = ("label", "labels")


class Labels(Protocol):
    EXPECTED: ClassVar[str]

    def fields_in(self, record: Mapping[str, Any]) -> Fields | None: ...

    def takes(self, fields: Fields) -> bool: ...

    def read(self, value: Any, where: str) -> Any: ...

    def source(self, record: Mapping[str, Any], field: str, where: str) -> Any: ...


class _OfTexts:
    def source(self, record: Mapping[str, Any], field: str, where: str) -> str | None:
        return text_in(record, field, where)


@dataclass(frozen=True)
class TargetTexts(_OfTexts):
    """Target texts of encoder-decoder models."""

    EXPECTED: ClassVar[str] = "SOURCE,TARGET"

    def fields_in(self, record: Mapping[str, Any]) -> Fields | None:
        """Return source and target; of a `translation` its two languages, as they stand."""
        inside = record.get(_TRANSLATION)
        if isinstance(inside, Mapping) and len(inside) == 2:
            return tuple(f"{_TRANSLATION}.{language}" for language in inside)
        return next((pair for pair in _PAIRS if set(pair) <= record.keys()), None)

    def takes(self, fields: Fields) -> bool:
        return len(fields) == 2

    def read(self, value: Any, where: str) -> str:
        return _text(value, where, "a target text")


@dataclass(frozen=True)
class Transcripts:
    """What is said in recordings: names of files, their bytes, or samples with their rate."""

    EXPECTED: ClassVar[str] = "AUDIO,TEXT"

    def fields_in(self, record: Mapping[str, Any]) -> Fields | None:
        audio = next((name for name in _RECORDINGS if name in record), None)
        text = next((name for name in _TRANSCRIPTS if name in record), None)
        return None if audio is None or text is None else (audio, text)

    def takes(self, fields: Fields) -> bool:
        return len(fields) == 2

    def read(self, value: Any, where: str) -> str:
        return _text(value, where, "a transcript")

    def source(self, record: Mapping[str, Any], field: str, where: str) -> Any:
        return value_in(record, field, where)


class _TextsWithLabel(_OfTexts):
    EXPECTED: ClassVar[str] = "TEXT,LABEL or TEXT,TEXT_PAIR,LABEL"

    def fields_in(self, record: Mapping[str, Any]) -> Fields | None:
        texts = next((texts for texts in _TEXTS if set(texts) <= record.keys()), None)
        label = next((label for label in _LABELS if label in record), None)
        return None if texts is None or label is None else (*texts, label)

    def takes(self, fields: Fields) -> bool:
        return len(fields) in (2, 3)


@dataclass(frozen=True)
class ClassLabels(_TextsWithLabel):
    """Classes of classifiers: their numbers, or names of the model's `label2id`.

    Attributes:
        numbers: of the names.
        count: of the classes.
    """

    numbers: Mapping[str, int]
    count: int

    def read(self, value: Any, where: str) -> int:
        if isinstance(value, str):
            return self._named(value, where)
        if not isinstance(value, int):
            got = type(value).__name__
            raise InputError(f"{where}: the label is {got}, expected a number or a name")
        if not 0 <= value < self.count:
            raise InputError(
                f"{where}: the label is {int(value)}, the model has the classes 0 to "
                f"{self.count - 1}"
            )
        return int(value)

    def _named(self, name: str, where: str) -> int:
        if name in self.numbers:
            return self.numbers[name]
        raise InputError(
            f"{where}: the model has no label '{_short(name)}'"
            f"{did_you_mean(name, self.numbers)}; its labels: {_listed(self.numbers)}"
        )


@dataclass(frozen=True)
class Scores(_TextsWithLabel):
    """Numbers that a model with one output regresses."""

    def read(self, value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            got = type(value).__name__
            raise InputError(f"{where}: the label is {got}, expected a number to regress")
        return float(value)


def named_fields(text: str, labels: Labels) -> Fields:
    """Return the fields that `--field` names. Raises InputError for another number of them."""
    fields = tuple(name.strip() for name in text.split(","))
    if not all(fields) or not labels.takes(fields):
        raise InputError(
            f"--field {text} names {len(fields)} fields, expected {labels.EXPECTED}"
        )
    return fields


def value_in(record: Mapping[str, Any], field: str, where: str) -> Any:
    """Return the value of a field. Raises InputError where the record has none."""
    value: Any = record
    for name in (field,) if field in record else field.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(sorted(map(str, record))) or "none"
            raise InputError(f"{where} has no field '{field}'; its fields: {known}")
        value = value[name]
    return value


def text_in(record: Mapping[str, Any], field: str, where: str) -> str | None:
    """Return the text of a field, None where it is null. Raises InputError."""
    value = value_in(record, field, where)
    return None if value is None else _text(value, where, f"field '{field}'").strip()


def _text(value: Any, where: str, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} is {type(value).__name__}, expected a string")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "")
