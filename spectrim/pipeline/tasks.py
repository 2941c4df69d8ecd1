"""The task of a recipe: its rows for training, calibrating and scoring, and its examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks, check_vocabulary
from spectrim.data.tasks import (
    RowSettings,
    TaskExample,
    TaskRows,
    TaskSettings,
    calibration_blocks,
    load_task,
    task_rows,
)
from spectrim.errors import InputError
from spectrim.models.compressible import check_causal_kind
from spectrim.models.context import context_length
from spectrim.pipeline.recipe import TaskRecipe

LONGEST_ROW = 2048
"""Tokens, for models that read more."""


def load_task_examples(recipe: TaskRecipe) -> list[TaskExample]:
    """Return the examples. Raises InputError for a task that cannot be read."""
    settings = TaskSettings(
        recipe.prompt_field, recipe.answer_field, recipe.template, recipe.shots, recipe.limit
    )
    return load_task(recipe.data, settings)


def load_task_rows(model: PreTrainedModel, tokenizer: Any, recipe: TaskRecipe) -> TaskRows:
    """Return rows of tokens, checked against the model. Raises InputError."""
    return encode_examples(model, tokenizer, recipe, load_task_examples(recipe))


def encode_examples(
    model: PreTrainedModel, tokenizer: Any, recipe: TaskRecipe, examples: list[TaskExample]
) -> TaskRows:
    """Return rows of tokens of the given examples."""
    check_causal_kind(model)
    context = context_length(model)
    length = recipe.length or min(context or LONGEST_ROW, LONGEST_ROW)
    if context and length > context:
        raise InputError(f"task.length is {length}, the model reads at most {context} tokens")
    settings = RowSettings(length, recipe.labels)
    rows = task_rows(examples, tokenizer, settings, recipe.data)
    embedding: Any = model.get_input_embeddings()
    check_vocabulary(calibration_blocks(rows), embedding.weight.shape[0])
    return rows


def sample_rows(rows: TaskRows, count: int, seed: int | None) -> TaskRows:
    """Return at most `count` rows, drawn by `seed`, or the first ones."""
    if count >= len(rows):
        return rows
    order = torch.arange(len(rows))
    if seed is not None:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = order[:count].sort().values
    part = rows.batch(chosen)
    name = f"{rows.fingerprint}[{count} rows, seed {seed}]"
    return TaskRows(part.ids, part.mask, part.scored, name, rows.source, rows.settings)


def task_blocks(rows: TaskRows, sequences: int, seed: int | None) -> TokenBlocks:
    """Return rows of a task as calibration text."""
    chosen = sample_rows(rows, sequences, seed)
    return replace(calibration_blocks(chosen), source=rows.source)
