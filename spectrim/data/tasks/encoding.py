"""Prompts and answers as tokens, and the start of the answer.

Prompt and answer are tokenized together, as the model will read them; a token that reaches
over the border belongs to the answer. A tokenizer that cannot say where its tokens lie gets
the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spectrim.data.tasks.example import TaskExample
from spectrim.data.tokenizing import leading_tokens
from spectrim.errors import InputError

_AT_ONCE = 1000
"""Examples that are tokenized in one call."""
_PLAIN: dict[str, Any] = {"add_special_tokens": False, "verbose": False}


def example_tokens(
    examples: Sequence[TaskExample], tokenizer: Any
) -> Iterator[tuple[list[int], int]]:
    """Yield the tokens of prompt and answer without special ones, and the prompt's number."""
    encode = _together if tokenizer.is_fast else _apart
    for start in range(0, len(examples), _AT_ONCE):
        yield from encode(examples[start : start + _AT_ONCE], tokenizer)


def prompt_tokens(example: TaskExample, tokenizer: Any) -> list[int]:
    """Return BOS and the prompt. Raises InputError if that is empty."""
    tokens = leading_tokens(tokenizer) + text_tokens(example.prompt, tokenizer)
    if not tokens:
        raise InputError(
            "a prompt without tokens cannot be answered; expected a prompt, or a tokenizer "
            "with a BOS token"
        )
    return tokens


def text_tokens(text: str, tokenizer: Any) -> list[int]:
    """Return the tokens without special ones."""
    return list(tokenizer(text, **_PLAIN)["input_ids"]) if text else []


def _together(
    examples: Sequence[TaskExample], tokenizer: Any
) -> Iterator[tuple[list[int], int]]:
    texts = [example.prompt + example.answer for example in examples]
    found = tokenizer(texts, return_offsets_mapping=True, **_PLAIN)
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    for example, (tokens, offsets) in zip(examples, pairs, strict=True):
        border = len(example.prompt)
        beyond = (n for n, (_, end) in enumerate(offsets) if end > border)
        yield list(tokens), next(beyond, len(tokens))


def _apart(examples: Sequence[TaskExample], tokenizer: Any) -> Iterator[tuple[list[int], int]]:
    for example in examples:
        prompt = text_tokens(example.prompt, tokenizer)
        yield prompt + text_tokens(example.answer, tokenizer), len(prompt)
