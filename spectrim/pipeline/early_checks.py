"""Check the command line, config.json and the tokenizer's files before weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from spectrim.checkpoint import check_causal, check_dense, resolve, stored_dtype, stored_kind
from spectrim.checkpoint.gguf import is_gguf
from spectrim.checkpoint.load import (
    has_tokenizer,
    load_processor,
    load_tokenizer,
    read_config,
)
from spectrim.checkpoint.validation import check_directory, weight_files
from spectrim.data.conversation import Conversation
from spectrim.data.labeled import check_examples
from spectrim.data.loading import first_documents
from spectrim.errors import InputError
from spectrim.models.context import check_length
from spectrim.models.experts import fused_expert_names
from spectrim.models.kind import SPEECH
from spectrim.models.targets import find_targets
from spectrim.pipeline import compatibility
from spectrim.pipeline.labeled import check_recording, labels_for
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.space import check_space

_SURELY = 0.9
"""Of the bytes that a budget keeps; plans keep a little less than their budget."""
_SHARD = 10**9
"""Bytes of a file that a larger result surely has."""


def check_text(recipe: Recipe, bundled: bool) -> None:
    """Raise InputError where no text is named, but for the models that come with the library.

    The Python sources, which those are calibrated on, are no text that a model of another kind
    should be judged by.
    """
    named = recipe.calibration.data is not None or recipe.task is not None
    prunes = recipe.pruning is not None  # what it lacks is a task
    if not (named or prunes or bundled):
        raise InputError(
            "no calibration text; give --data (in Python calibration.data of the recipe) with "
            "text like the model's own: a file, a directory, hf:NAME:SPLIT, or python for the "
            "Python sources of this machine"
        )


def check_early(
    name: str, recipe: Recipe, trust_remote_code: bool = False, any_kind: bool = False
) -> tuple[str, ...]:
    """Check all of a run that needs no weights.

    Returns the fields of the examples of a model whose loss needs labels. any_kind: whether
    other models than causal language models are taken.

    Raises:
        InputError: the model or a text is not there, has no tokenizer, or rows are too long.
        ModelError: a pattern matches no layer, or the model is compressed or quantized.
        CheckpointError: its files are damaged.
    """
    source = resolve(name)
    fields: tuple[str, ...] = ()
    if is_gguf(source):
        return fields
    if isinstance(source, Path):
        check_directory(source)
        if not has_tokenizer(source):
            raise InputError(f"{name} has no tokenizer; put its files beside the model")
    kind = stored_kind(name, trust_remote_code=trust_remote_code)
    if not any_kind:
        check_causal(name, trust_remote_code=trust_remote_code)
    compatibility.check(recipe, *compatibility.ways_of(kind))
    check_dense(name, trust_remote_code=trust_remote_code)
    options = {"trust_remote_code": trust_remote_code}
    if kind.labeled and recipe.calibration.data is not None:
        fields = check_labels(name, recipe.calibration.data, recipe.calibration.field)
    elif recipe.calibration.data is not None:
        check_documents(name, recipe.calibration.data, recipe.calibration.field, **options)
    if recipe.include or recipe.exclude or recipe.calibration.length:
        loader = getattr(transformers, kind.loader)
        _check_structure(source, recipe, loader, trust_remote_code)
    return fields


def check_documents(name: str, data: str, field: str | None = None, **options: Any) -> None:
    """Read the beginning of a text as the model `name` will.

    Raises InputError for what is no text, and for conversations without a chat template that
    takes them.
    """
    found = (d for d in first_documents(data, field) if isinstance(d, Conversation))
    if conversation := next(found, None):
        conversation.render(load_tokenizer(resolve(name), options))


def check_labels(name: str, data: str, field: str | None = None) -> tuple[str, ...]:
    """Return the fields of the examples `data` of a model whose loss needs labels.

    Raises InputError for records that are no examples, or a label that the model has not.
    """
    kind, config = stored_kind(name), read_config(name)
    fields = check_examples(data, labels_for(kind, config), field)
    if kind is SPEECH and fields:
        check_recording(load_processor(resolve(name), {}), config, data, field)
    return fields


def check_room(name: str, output: Path, recipe: Recipe) -> None:
    """Raise InputError where the disk has no room for the least that a result can be.

    What the budget keeps of all weights, in the dtype to be saved; bits may keep less.
    """
    source = resolve(name)
    if not isinstance(source, Path) or recipe.quantization is not None:
        return
    stored = stored_dtype(source) or torch.float32
    saved = getattr(torch, recipe.save_dtype) if recipe.save_dtype else stored
    share = recipe.budget * saved.itemsize / stored.itemsize * _SURELY
    sizes = [int(file.stat().st_size * share) for file in weight_files(source)]
    check_space(output, sum(sizes), min(_SHARD, max(sizes, default=0)))


def _check_structure(
    source: Path | str, recipe: Recipe, loader: Any, trust_remote_code: bool
) -> None:
    """Look at the model without its weights; the loader says what is wrong with its config."""
    options = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        with torch.device("meta"):
            model = loader.from_config(config, **options)
    except Exception:
        return
    if recipe.calibration.length:
        check_length(model, recipe.calibration.length)
    if not fused_expert_names(model):  # experts get their names when they are split
        find_targets(model, recipe.include, recipe.exclude)
