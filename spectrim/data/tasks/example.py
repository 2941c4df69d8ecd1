"""The unit of a task: a prompt and the answer that should follow it."""

from __future__ import annotations

from dataclasses import dataclass

from spectrim.errors import InputError


@dataclass(frozen=True)
class TaskExample:
    """`prompt + answer` is what the model reads; `prompt` may be empty (plain text).

    `final` is the short answer that accuracy compares, where the data gives one.
    Raises InputError for an empty answer and for what is not valid Unicode text.
    """

    prompt: str
    answer: str
    final: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            _check_text(name, getattr(self, name))
        if self.final is not None:
            _check_text("final answer", self.final)
        if not self.answer.strip():
            raise InputError("the answer is empty; expected the text the model should give")


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InputError(f"the {name} is {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {name} holds half a surrogate pair at character {error.start}; "
            "expected valid Unicode text"
        ) from error
