"""Encode examples: what the tokenizer makes of texts and targets, cut and padded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from spectrim.data.labeled.reading import Example, Examples, check_count
from spectrim.data.labeled.rows import IGNORED, MASK, LabeledRows
from spectrim.errors import InputError


@dataclass(frozen=True)
class EncodingSettings:
    """How much to read, and the arguments that the model takes.

    Attributes:
        arguments: of the model's forward pass; other results of the tokenizer are left out.
        length: tokens of an input, and of a target; longer ones are cut.
        examples: how many at most.
        tokens: of the inputs, at which no further example is read.
        padding: the model's padding token; None for one that knows none.
    """

    arguments: frozenset[str]
    length: int
    examples: int | None = None
    tokens: int | None = None
    padding: int | None = None


@dataclass
class Encoded:
    """Rows as they grow."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    tokens: int = 0
    cut_inputs: int = 0
    cut_targets: int = 0


def encode_examples(
    examples: Examples, tokenizer: Any, settings: EncodingSettings, source: str
) -> LabeledRows:
    """Return the rows of as many examples as the settings ask for.

    Warns (UserWarning) of records with a null or empty field, and of rows that are cut. Raises
    InputError for records that are no examples, and where there is none.
    """
    return encode_by(ExampleEncoder(tokenizer, settings), examples, source)


def encode_by(encoder: ExampleEncoder, examples: Examples, source: str) -> LabeledRows:
    """Return the rows that an encoder makes of examples, as `encode_examples` does."""
    encoded, settings = Encoded(), encoder.settings
    for some in _portions(iter(examples), settings.examples, encoder.AT_ONCE):
        encoder.add(encoded, some)
        if encoded.tokens >= (settings.tokens or sys.maxsize):
            break
    check_count(examples, len(encoded.labels), source)
    _warn(examples, encoded, settings, source)
    rows = LabeledRows.of(encoder.padded(encoded), encoder.labels(encoded), source)
    record = asdict(replace(settings, arguments=frozenset()))
    record |= {"fields": list(examples.fields), "null": examples.null, "empty": examples.empty}
    record |= {"cut_inputs": encoded.cut_inputs, "cut_targets": encoded.cut_targets}
    record |= {"sequences": len(rows)}
    del record["arguments"]
    return replace(rows, settings=record, alone=settings.padding is None)


def _portions(
    examples: Iterator[Example], most: int | None, at_once: int
) -> Iterator[list[Example]]:
    left = most or sys.maxsize
    while some := list(islice(examples, min(at_once, left))):
        left -= len(some)
        yield some


class ExampleEncoder:
    """Texts with labels as tokens, several at once."""

    AT_ONCE = 256

    def __init__(self, tokenizer: Any, settings: EncodingSettings):
        self.tokenizer, self.settings = tokenizer, settings

    def add(self, encoded: Encoded, examples: Sequence[Example]) -> None:
        pairs = [example.second for example in examples if example.second is not None]
        seconds = pairs or None
        texts = [example.text for example in examples]
        found, cut = self._tokenize(texts, seconds)
        encoded.cut_inputs += cut
        for row in zip(*found.values(), strict=True):
            encoded.inputs.append(dict(zip(found, row, strict=True)))
        encoded.tokens += sum(map(len, found["input_ids"]))
        self.add_labels(encoded, [example.label for example in examples])

    def add_labels(self, encoded: Encoded, labels: list[Any]) -> None:
        if isinstance(labels[0], str):
            target, cut = self._tokenize(labels, target=True)
            labels = target["input_ids"]
            encoded.cut_targets += cut
        encoded.labels += labels

    def _tokenize(
        self,
        texts: list[str],
        seconds: list[str] | None = None,
        target: bool = False,
    ) -> tuple[dict[str, list[list[int]]], int]:
        """Return what the model takes of the tokenizer's results, and how many rows are cut."""
        given = {"text_target" if target else "text": texts}
        given |= {} if seconds is None else {"text_pair": seconds}
        length = self.settings.length
        found = self.tokenizer(**given, truncation=True, max_length=length, verbose=False)
        full = [n for n, ids in enumerate(found["input_ids"]) if len(ids) == length]
        cut = 0
        if full:
            again = {name: [values[n] for n in full] for name, values in given.items()}
            whole = self.tokenizer(**again, truncation=False, verbose=False)["input_ids"]
            cut = sum(len(ids) > length for ids in whole)
        names = [n for n in found if n == "input_ids" or n in self.settings.arguments]
        kept = {n: found[n] for n in names if n != MASK}
        return kept | {MASK: [[1] * len(ids) for ids in found["input_ids"]]}, cut

    def padded(self, encoded: Encoded) -> dict[str, Tensor]:
        fill = {"input_ids": self.settings.padding or 0}
        names = encoded.inputs[0]
        return {
            name: _pad([row[name] for row in encoded.inputs], fill.get(name, 0))
            for name in names
        }

    def labels(self, encoded: Encoded) -> Tensor:
        if isinstance(encoded.labels[0], list):
            return _pad(encoded.labels, IGNORED)
        dtype = torch.float32 if isinstance(encoded.labels[0], float) else torch.long
        return torch.tensor(encoded.labels, dtype=dtype)


def _pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    result = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for number, row in enumerate(rows):
        result[number, : len(row)] = torch.tensor(row)
    return result


def _warn(
    examples: Examples, encoded: Encoded, settings: EncodingSettings, source: str
) -> None:
    if examples.null or examples.empty:
        warnings.warn(
            f"'{source}': skipped {examples.null + examples.empty} of the {examples.seen} "
            f"records read: {examples.null} with a null field, {examples.empty} with an empty "
            "text",
            stacklevel=3,
        )
    if encoded.cut_inputs or encoded.cut_targets:
        warnings.warn(
            f"'{source}': {encoded.cut_inputs} inputs and {encoded.cut_targets} targets of "
            f"{len(encoded.labels)} examples are cut to {settings.length} tokens (--length)",
            stacklevel=3,
        )
    if settings.examples is not None and len(encoded.labels) < settings.examples:
        warnings.warn(
            f"asked for {settings.examples} examples, '{source}' gives "
            f"{len(encoded.labels)}; using those",
            stacklevel=3,
        )


def check_ids(rows: LabeledRows, vocabulary: int) -> None:
    """Raise InputError for a token beyond the model's vocabulary."""
    sides = [rows.inputs.get("input_ids"), rows.labels if rows.has_targets else None]
    largest = max(int(side.max()) for side in sides if side is not None)
    if largest >= vocabulary:
        raise InputError(
            f"token id {largest} is beyond the model's vocabulary of {vocabulary}: the "
            "tokenizer and the model do not match; load both from the same checkpoint"
        )
