"""What a task is made of: a prompt and the answer that should follow it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskExample:
    """`prompt + answer` is what the model reads; `prompt` may be empty (plain text).

    `final` is the short answer that accuracy compares, where the data gives one.
    """

    prompt: str
    answer: str
    final: str | None = None
