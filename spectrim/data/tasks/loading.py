"""Load examples from a spec or a Python iterable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from spectrim.data import SOURCES
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.settings import TaskSettings
from spectrim.errors import InputError
from spectrim.registry import Registry

FORMATS = Registry("task format", "spectrim.data.tasks.formats")

Given = TaskExample | tuple[str, str] | tuple[str, str, str]
Task = str | Iterable[Given] | Callable[[], Iterable[Given]]
"""A spec like `gsm8k:FILE`, examples, or a function that returns them."""
BETWEEN_SHOTS = "\n\n"


def load_task(task: Task, settings: TaskSettings | None = None) -> list[TaskExample]:
    """Return the examples of a spec, of an iterable, or of the result of a callable.

    A spec is `FORMAT:PLACE`, or a PLACE that a format knows by its looks. Iterables give
    TaskExamples, (prompt, answer) pairs or (prompt, answer, final) triples. Raises InputError
    for a spec no format knows, unusable records, and a task without examples.
    """
    settings = settings or TaskSettings()
    source = f"'{task}'" if isinstance(task, str) else "the task"
    stop = None if settings.limit is None else settings.shots + settings.limit
    found = list(islice(_opened(task, settings), stop))
    if not found:
        raise InputError(f"{source} holds no example")
    if len(found) <= settings.shots:
        raise InputError(
            f"{source} holds {len(found)} examples, expected more than the {settings.shots} "
            "demonstrations; give fewer shots"
        )
    return _after_shots(found[: settings.shots], found[settings.shots :], source)


def _opened(task: Task, settings: TaskSettings) -> Iterator[TaskExample]:
    if isinstance(task, str):
        module, place = _format(task)
        return iter(module.examples(place, settings))
    if settings.template or settings.prompt_field or settings.answer_field:
        raise InputError(
            "template and fields are for files; examples given in Python stand as they are"
        )
    return _checked(task() if callable(task) else task)


def _checked(given: Iterable[Given]) -> Iterator[TaskExample]:
    for number, one in enumerate(given, start=1):
        if isinstance(one, TaskExample):
            yield one
        elif isinstance(one, tuple | list) and len(one) in (2, 3):
            try:
                yield TaskExample(*one)
            except InputError as error:
                raise InputError(f"example {number}: {error}") from error
        else:
            raise InputError(
                f"example {number} is {type(one).__name__}, expected a TaskExample or a "
                "(prompt, answer) pair"
            )


def _format(spec: str) -> tuple[Any, str]:
    """Return the format's module and the place that it reads."""
    name, _, place = spec.partition(":")
    if name in FORMATS.names():
        return FORMATS.get(name), place
    modules = [FORMATS.get(name) for name in FORMATS.names()]
    for module in modules:
        if module.matches(spec):
            return module, spec
    shown = spec if len(spec) <= 80 else f"{spec[:77]}..."
    forms = "; ".join(module.FORM for module in modules)
    texts = "; ".join(SOURCES.get(name).FORM for name in SOURCES.names())
    raise InputError(
        f"cannot tell what task '{shown}' means; expected one of: {forms}. Text: {texts}"
    )


def _after_shots(
    shots: list[TaskExample], examples: list[TaskExample], source: str
) -> list[TaskExample]:
    if not shots:
        return examples
    if not all(example.prompt for example in (*shots, *examples)):
        raise InputError(f"shots need prompts, {source} has an example without one")
    told = "".join(shot.prompt + shot.answer + BETWEEN_SHOTS for shot in shots)
    return [replace(example, prompt=told + example.prompt) for example in examples]
