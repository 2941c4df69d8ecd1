"""JSON lines: a prompt and an answer in two fields of each object."""

from __future__ import annotations

from collections.abc import Iterator

from spectrim.data.sources import jsonl as source
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.formats._records import HUB_FORM, Layout, Record, example, records
from spectrim.data.tasks.settings import TaskSettings
from spectrim.errors import InputError

FORM = f"PATH.jsonl (also .json with one object per line) or jsonl:{HUB_FORM}"
COMMAND = "spectrim compress MODEL -o OUT --recipe task --task task.jsonl"
VERBATIM = "{prompt}{answer}"
KNOWN = (
    Layout("prompt", "answer", VERBATIM),
    Layout("prompt", "completion", VERBATIM),
    Layout("prompt", "response", VERBATIM),
    Layout("question", "answer", "Question: {question}\nAnswer: {answer}"),
    Layout("instruction", "output", "{instruction}\n{output}"),
)
"""Pairs of fields that are found without being named, and how they are put together."""
WITH_INPUT = Layout("instruction", "output", "{instruction}\n{input}\n{output}")
"""For records of instructions that also have an input that is not empty."""


def matches(place: str) -> bool:
    return place.lower().endswith(source.SUFFIXES)


def examples(place: str, settings: TaskSettings) -> Iterator[TaskExample]:
    """Return the fields named by `settings`, else the first `KNOWN` pair in the first object.

    Raises InputError with the line number for a broken line, a missing or unusable field.
    """
    layout: Layout | None = None
    for where, record in records(place):
        layout = layout or _layout(record, where, settings)
        yield example(record, where, _for(record, layout, settings))


def _layout(record: Record, where: str, settings: TaskSettings) -> Layout:
    prompt, answer = settings.prompt_field, settings.answer_field
    if prompt and answer:
        return Layout(prompt, answer, settings.template or VERBATIM)
    for known in KNOWN:
        chosen = known.given(settings)
        if (chosen.prompt, chosen.answer) != (known.prompt, known.answer):
            continue
        if {known.prompt, known.answer} <= record.keys():
            return chosen
    fields = ", ".join(sorted(map(str, record))) or "none"
    pairs = ", ".join(f"{known.prompt}/{known.answer}" for known in KNOWN)
    raise InputError(
        f"{where}: cannot tell prompt from answer among its fields: {fields}; name both with "
        f"prompt_field and answer_field (found without: {pairs})"
    )


def _for(record: Record, layout: Layout, settings: TaskSettings) -> Layout:
    plain = layout == KNOWN[-1] and settings.template is None
    return WITH_INPUT if plain and record.get("input") else layout
