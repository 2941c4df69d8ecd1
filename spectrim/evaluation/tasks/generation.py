"""Greedy answers to many prompts, independent of the batches that they are in.

Prompts are sorted by length and padded on the left. If the model's context leaves a prompt
less room than the others, it runs alone with what is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from spectrim.data.tasks.encoding import prompt_tokens, text_tokens
from spectrim.data.tasks.example import TaskExample
from spectrim.errors import InputError
from spectrim.models.context import context_length
from spectrim.models.hooks import inference
from spectrim.runtime.context import ProgressBar

MARGIN = 16
"""Tokens that an answer may have more than the longest reference."""


class Group(NamedTuple):
    """Numbers of prompts that run together, and the most tokens of an answer."""

    numbers: list[int]
    room: int


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Sequence[TaskExample],
    groups: Sequence[Group],
    track: ProgressBar,
) -> list[str]:
    """Return one text per example, up to EOS; empty for those in no group."""
    texts = [""] * len(examples)
    with _greedy(model, tokenizer) as config:
        for group in track(groups, "answering", len(groups)):
            prompts = [prompt_tokens(examples[n], tokenizer) for n in group.numbers]
            ids, mask = _left_padded(prompts, config.pad_token_id)
            config.max_new_tokens = group.room
            given = model.generate(  # type: ignore[operator]
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
            )
            answers = given[:, ids.shape[1] :].tolist()
            for number, tokens in zip(group.numbers, answers, strict=True):
                texts[number] = _text(tokens, tokenizer, config.eos_token_id or [])
    return texts


def continue_prompt(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt: str,
    most: int,
    show: Callable[[str], bool],
) -> str:
    """Return the greedy continuation of `prompt` by at most `most` tokens, up to EOS.

    Args:
        show: receives the text after every token; the first false answer ends it.

    Raises:
        InputError: the prompt has no token, or fills the model's context.
    """
    tokens = prompt_tokens(TaskExample(prompt, "-"), tokenizer)
    context = context_length(model)
    most = most if context is None else min(most, context - len(tokens))
    if most < 1:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, the model's context {context}; shorten it"
        )
    with _greedy(model, tokenizer) as config:
        ends, config.max_new_tokens = config.eos_token_id or [], most
        before = tokenizer.decode(tokens, skip_special_tokens=True)

        def after(ids: Tensor) -> str:  # decoded with the prompt, so that a space stays
            new = ids[0, len(tokens) :].tolist()
            whole = tokens + new[: next((n for n, t in enumerate(new) if t in ends), None)]
            return tokenizer.decode(whole, skip_special_tokens=True)[len(before) :]

        def shown(ids: Tensor, scores: Any, **more: Any) -> Tensor:
            return torch.tensor([not show(after(ids))], device=ids.device)

        ids = torch.tensor([tokens], device=model.device)
        given = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            stopping_criteria=[shown],
        )
        return after(given)


def answer_groups(
    model: PreTrainedModel,
    tokenizer: Any,
    examples: Sequence[TaskExample],
    size: int,
    most: int | None,
) -> list[Group]:
    """Return groups of at most `size`; `most` None: the longest reference and `MARGIN`.

    Warns (UserWarning) about prompts that fill the context; those are in no group. Raises
    InputError for a prompt without tokens.
    """
    if most is None:
        most = MARGIN + max(len(text_tokens(one.answer, tokenizer)) for one in examples)
    lengths = [len(prompt_tokens(example, tokenizer)) for example in examples]
    context = context_length(model)
    room = [most if context is None else min(most, context - length) for length in lengths]
    order = sorted(range(len(examples)), key=lambda number: lengths[number])
    full = [number for number in order if room[number] == most]
    groups = [Group(full[start : start + size], most) for start in range(0, len(full), size)]
    groups += [Group([number], room[number]) for number in order if 0 < room[number] < most]
    if without := sum(left <= 0 for left in room):
        warnings.warn(
            f"{without} of {len(examples)} prompts fill the model's context of {context} "
            "tokens and count as not answered",
            stacklevel=3,
        )
    return groups


def _left_padded(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and mask (B, T), both int64."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def _text(tokens: list[int], tokenizer: Any, ends: list[int]) -> str:
    end = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
    return tokenizer.decode(tokens[:end], skip_special_tokens=True)


@contextmanager
def _greedy(model: PreTrainedModel, tokenizer: Any) -> Iterator[GenerationConfig]:
    """Decode by plain argmax in evaluation mode, whatever the model's own settings are."""
    own = model.generation_config
    ends = _ends(own, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    model.generation_config = GenerationConfig()
    try:
        with inference(model):
            yield GenerationConfig(do_sample=False, pad_token_id=pad, eos_token_id=ends or None)
    finally:
        model.generation_config = own


def _ends(config: GenerationConfig | None, tokenizer: Any) -> list[int]:
    """Return the EOS of the tokenizer and those in the model's config."""
    named = config.eos_token_id if config else None
    named = named if isinstance(named, list) else [named]
    return sorted({token for token in (tokenizer.eos_token_id, *named) if token is not None})
