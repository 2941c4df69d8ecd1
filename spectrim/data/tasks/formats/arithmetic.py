"""Generated word problems about small numbers: a task that needs no file."""

from __future__ import annotations

from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.settings import TaskSettings
from spectrim.data.tasks.word_problems import word_problems
from spectrim.errors import InputError

FORM = "arithmetic:SPLIT:COUNT[:SEED], e.g. arithmetic:train:2000"
COMMAND = "spectrim compress MODEL -o OUT --recipe task --task arithmetic:train:2000"


def matches(place: str) -> bool:
    return False


def examples(place: str, settings: TaskSettings) -> list[TaskExample]:
    """Return the problems. Raises InputError for an invalid spec or split, and for fields."""
    if settings.template or settings.prompt_field or settings.answer_field:
        raise InputError("word problems have no fields; leave template and fields out")
    split, count, seed = _parsed(place)
    return word_problems(split, count, seed)


def _parsed(place: str) -> tuple[str, int, int]:
    split, *numbers = place.split(":")
    fit = all(n.isascii() and n.isdecimal() and len(n) < 10 for n in numbers)
    if not split or len(numbers) not in (1, 2) or not fit or int(numbers[0]) < 1:
        raise InputError(f"cannot read 'arithmetic:{place}'; expected {FORM}")
    return split, int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0
