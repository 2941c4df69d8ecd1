"""What a calibration reads: the layers that can be compressed, and the tokens of a text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from spectrim.calibration import CalibrationSettings
from spectrim.data import (
    DEFAULT_TEXT,
    BlockSettings,
    TokenBlocks,
    check_vocabulary,
    token_blocks,
)
from spectrim.data.labeled import LabeledRows
from spectrim.models.compressible import check_causal_kind, check_compressible
from spectrim.models.context import check_length
from spectrim.models.kind import kind_of
from spectrim.models.prepare import Preparation, prepare_model
from spectrim.models.source import ModelSource, open_source
from spectrim.models.targets import Target
from spectrim.models.usage import Usage, load_usage, observe_usage
from spectrim.pipeline.calibration_defaults import (
    TASK_ROWS,
    calibration_length,
    default_sequences,
    vocabulary_size,
)
from spectrim.pipeline.labeled import calibration_examples
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.tasks import load_task_rows, task_blocks
from spectrim.runtime.cache import Cache, load_if_valid, store
from spectrim.runtime.context import NO_CACHE
from spectrim.runtime.files import write_values


def prepare(
    model: PreTrainedModel | ModelSource, recipe: Recipe, cache: Cache | None = None
) -> Preparation:
    """Split fused experts in place, and find the layers to compress. Raises ModelError.

    A run on a few tokens, or the cache, shows how the model uses its layers.
    """
    source = open_source(model)
    check_compressible(source.model)
    cache = cache or NO_CACHE
    usage = cache.once(("usage", id(source.model)), lambda: _usage(source, cache))
    return prepare_model(source.model, usage, recipe.include, recipe.exclude)


def _usage(source: ModelSource, cache: Cache) -> Usage:
    path = None
    if cache.root is not None:
        entry = cache.path("usage", {"model": source.fingerprint})
        path = None if entry is None else entry.with_suffix(".json")
    usage = load_if_valid(path, load_usage)
    if usage is None:
        usage = observe_usage(source)
        values = asdict(usage)
        store(path, lambda place: write_values(place, values))
    return usage


def calibration_key(
    fingerprint: Any,
    blocks: TokenBlocks | LabeledRows,
    settings: CalibrationSettings,
    targets: Iterable[Target],
) -> dict[str, Any]:
    """Return what the statistics of a pass depend on, as JSON values for the cache."""
    return {
        "model": fingerprint,
        "data": blocks.fingerprint,
        "statistics": list(settings.statistics),
        "labels": settings.label_key,
        **settings.format_key,
        "layers": [target.name for target in targets],
    }


def calibration_rows(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, cache: Cache = NO_CACHE
) -> TokenBlocks | LabeledRows:
    """Return the recipe's text, or, for a model whose loss needs labels, its examples."""
    if kind_of(model).labeled:
        return calibration_examples(model, tokenizer, recipe.calibration)
    return calibration_blocks(model, tokenizer, recipe, cache=cache)


def calibration_blocks(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    factor: int = 1,
    cache: Cache = NO_CACHE,
) -> TokenBlocks:
    """Return the recipe's calibration tokens, checked against the model's vocabulary.

    With a task these are rows of it, whose loss counts where the task counts it. factor: times
    as many sequences as the recipe has. Raises ModelError for a model whose loss needs labels.
    """
    check_causal_kind(model)
    text = json.dumps([factor, asdict(recipe.calibration), recipe.task and asdict(recipe.task)])
    key = ("blocks", id(model), id(tokenizer), text)
    return cache.once(key, lambda: _blocks(model, tokenizer, recipe, factor))


def _blocks(model: PreTrainedModel, tokenizer: Any, recipe: Recipe, factor: int) -> TokenBlocks:
    given = recipe.calibration
    if recipe.task is not None:
        rows = load_task_rows(model, tokenizer, recipe.task)
        return task_blocks(rows, factor * (given.sequences or TASK_ROWS), given.seed)
    length = given.length or calibration_length(model)
    check_length(model, length)
    sequences = factor * (given.sequences or default_sequences(model, length))
    settings = BlockSettings(sequences, length, given.seed, rows=given.rows)
    blocks = token_blocks(given.data or DEFAULT_TEXT, tokenizer, settings, given.field)
    check_vocabulary(blocks, vocabulary_size(model))
    return blocks
