"""Functions shared by formats of records: reading records, and records as examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from spectrim.data.sources import hub, jsonl, text_of
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.settings import TaskSettings
from spectrim.errors import InputError

HUB_FORM = "hub:NAME[:CONFIG]:SPLIT"
_BRACES = re.compile(r"\{(\w+)\}")

Record = dict[str, Any]


def records(place: str) -> Iterator[tuple[str, Record]]:
    """Yield the place and the record, from JSON lines or streamed from the hub.

    Raises InputError for what cannot be found or read.
    """
    if place.startswith("hf:"):
        return hub.records(hub.parse(place))
    if place.startswith("hub:"):
        return hub.records(_hub_spec(place))
    return jsonl.records(place)


def _hub_spec(place: str) -> hub.HubSpec:
    parts = place.split(":")[1:]
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(
            f"cannot read '{place}'; expected {HUB_FORM}, e.g. hub:openai/gsm8k:main:train"
        )
    config = parts[1] if len(parts) == 3 else None
    return hub.HubSpec(parts[0], config, parts[-1], None)


@dataclass(frozen=True)
class Layout:
    """The fields of prompt and answer, and the template (see TaskSettings)."""

    prompt: str
    answer: str
    template: str

    def given(self, settings: TaskSettings) -> Layout:
        """Return the layout, overridden by the fields that the settings name."""
        prompt = settings.prompt_field or self.prompt
        answer = settings.answer_field or self.answer
        return Layout(prompt, answer, settings.template or self.template)

    @property
    def head(self) -> str:
        """Return the template up to the answer. Raises InputError if it is not the last."""
        found = re.search(rf"\{{(?:answer|{re.escape(self.answer)})\}}", self.template)
        if found is None:
            return self.template
        if self.template[found.end() :].strip():
            raise InputError(
                f"template '{self.template}' goes on after the answer; "
                "expected {answer} at its end"
            )
        return self.template[: found.start()]


def examples_of(
    place: str,
    layout: Layout,
    final: Callable[[str], str | None] | None = None,
    expected: str = "",
) -> Iterator[TaskExample]:
    """Yield one example per record of `place`; `final` must find something in each answer."""
    for where, record in records(place):
        yield example(record, where, layout, final, expected)


def example(
    record: Record,
    where: str,
    layout: Layout,
    final: Callable[[str], str | None] | None = None,
    expected: str = "",
) -> TaskExample:
    """Return an example. Raises InputError naming `where` for unusable fields or answers."""
    answer = value_of(record, layout.answer, where)
    prompt = _filled(layout, record, where)
    head = prompt.rstrip(" ")
    found = final(answer) if final else None
    if final and found is None:
        raise InputError(f"{where}: the answer gives no result; expected {expected} in it")
    try:
        return TaskExample(head, answer and prompt[len(head) :] + answer, found)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def value_of(record: Record, field: str, where: str) -> str:
    """Return the field as text, numbers written out. Raises InputError naming `where`."""
    value = record.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text_of(record, field, where)


def _filled(layout: Layout, record: Record, where: str) -> str:
    names = {"prompt": layout.prompt}
    return _BRACES.sub(
        lambda found: value_of(record, names.get(found[1], found[1]), where), layout.head
    )
