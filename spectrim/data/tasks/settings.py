"""The settings of reading a task, for all formats."""

from __future__ import annotations

from dataclasses import dataclass

from spectrim.errors import InputError


@dataclass(frozen=True)
class TaskSettings:
    """Fields and template of the records, demonstrations before each prompt, how many.

    prompt_field, answer_field   names in the records; None: the format's own or detected
    template   e.g. "Q: {prompt}\\nA: {answer}"; braces hold a field's name, or `prompt` and
        `answer` for the two fields above; spaces before {answer} belong to the answer, and
        without {answer} it follows directly; None: the format's own
    shots   the first so many examples stand before every prompt and are not examples
    limit   at most so many examples; None: all
    """

    prompt_field: str | None = None
    answer_field: str | None = None
    template: str | None = None
    shots: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise InputError(f"shots is {self.shots}, expected 0 or more")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}, expected at least 1 (or none)")
