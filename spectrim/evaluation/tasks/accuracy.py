"""Accuracy = share of examples whose greedily decoded answer is the reference's.

answer(prompt) = argmax decoding of [BOS] ++ tokens(prompt), up to EOS
right          = same_answer(final(answer(prompt)), final(reference))

The final answer is extracted by the first reader of `READERS` that finds the reference's
`final` in the reference's own answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from spectrim.data.tasks.answer_parsing import (
    extract_gsm8k,
    extract_math,
    extract_number,
    same_answer,
)
from spectrim.data.tasks.example import TaskExample
from spectrim.errors import InputError, UnknownNameError
from spectrim.evaluation.tasks.generation import answer_groups, greedy_answers
from spectrim.runtime.context import ProgressBar, silent

Reader = Callable[[str], str | None]
READERS: dict[str, Reader] = {
    "gsm8k": lambda text: extract_gsm8k(text) or extract_number(text),
    "math": extract_math,
    "number": extract_number,
    "text": lambda text: text.strip() or None,
}
"""gsm8k: after ####, else the last number; math: in the last box; text: the whole answer."""
_FOUND_BY: dict[str, Reader] = READERS | {"gsm8k": extract_gsm8k}


@dataclass(frozen=True)
class AccuracySettings:
    """Settings of the evaluation.

    Attributes:
        max_new_tokens: None for a few more than the longest reference has.
        reader: one of `READERS`, None to follow the reference.
        stop: texts that end an answer; they are cut off with what follows.
        predictions: return the decoded answers too.
    """

    batch_size: int = 16
    max_new_tokens: int | None = None
    reader: str | None = None
    stop: tuple[str, ...] = ("\n\nQuestion:", "\n\nProblem:")
    predictions: bool = False

    def __post_init__(self) -> None:
        most = 1 if self.max_new_tokens is None else self.max_new_tokens
        if min(self.batch_size, most) < 1:
            raise InputError(
                "batch_size and max_new_tokens are expected to be at least 1, got "
                f"{self.batch_size} and {self.max_new_tokens}"
            )
        if self.reader is not None and self.reader not in READERS:
            raise UnknownNameError("answer reader", self.reader, READERS)


def exact_match(
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Sequence[TaskExample],
    settings: AccuracySettings | None = None,
    track: ProgressBar = silent,
) -> dict[str, Any]:
    """Return `accuracy`, `count`, `answered` (share with a final answer) and `seconds`.

    With the setting also `predictions` (one text per example, in order). Model modes and the
    tokenizer are left unchanged. Raises InputError without examples, and for a prompt without
    tokens; warns (UserWarning) about prompts that leave no room for an answer: they count as
    wrong.
    """
    settings = settings or AccuracySettings()
    if not examples:
        raise InputError("accuracy needs at least one example, got none")
    started = time.monotonic()
    groups = answer_groups(
        model, tokenizer, examples, settings.batch_size, settings.max_new_tokens
    )
    answers = greedy_answers(model, tokenizer, examples, groups, track)
    texts = [_before(text, settings.stop) for text in answers]
    finals = [_final(one, text, settings) for one, text in zip(examples, texts, strict=True)]
    right = sum(same_answer(given, wanted) for given, wanted in finals)
    count = len(examples)
    result: dict[str, Any] = {
        "accuracy": right / count,
        "count": count,
        "answered": sum(given is not None for given, _ in finals) / count,
        "seconds": time.monotonic() - started,
    }
    return result | ({"predictions": texts} if settings.predictions else {})


def reader_for(example: TaskExample) -> str:
    """Return the name of the first reader that finds the example's `final` in its answer."""
    if example.final is None:
        return "text"
    found = (
        n for n, read in _FOUND_BY.items() if same_answer(read(example.answer), example.final)
    )
    return next(found, "text")


def _final(
    example: TaskExample, text: str, settings: AccuracySettings
) -> tuple[str | None, str]:
    """Return the final answers of the model's text and of the reference."""
    reader = READERS[settings.reader or reader_for(example)]
    wanted = example.final or reader(example.answer) or example.answer
    return reader(text), wanted


def _before(text: str, stops: tuple[str, ...]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text
