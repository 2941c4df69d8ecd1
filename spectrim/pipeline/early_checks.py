"""What the command line, config.json and the tokenizer's files say before weights are read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spectrim.checkpoint import check_dense, resolve
from spectrim.checkpoint.gguf import is_gguf
from spectrim.checkpoint.load import has_tokenizer
from spectrim.checkpoint.validation import check_directory
from spectrim.data.loading import check_places
from spectrim.errors import InputError
from spectrim.models.context import check_length
from spectrim.models.experts import fused_expert_names
from spectrim.models.targets import find_targets
from spectrim.pipeline.recipe import Recipe


def check_early(name: str, recipe: Recipe, trust_remote_code: bool = False) -> None:
    """Check all of a run that needs no weights.

    Raises:
        InputError: the model or a text is not there, has no tokenizer, or rows are too long.
        ModelError: a pattern matches no layer, or the model is compressed or quantized.
        CheckpointError: its files are damaged.
    """
    source = resolve(name)
    if is_gguf(source):
        return
    if isinstance(source, Path):
        check_directory(source)
        if not has_tokenizer(source):
            raise InputError(f"{name} has no tokenizer; put its files beside the model")
    check_dense(name, trust_remote_code=trust_remote_code)
    if recipe.calibration.data is not None:
        check_places(recipe.calibration.data)
    if recipe.include or recipe.exclude or recipe.calibration.length:
        _check_structure(source, recipe, trust_remote_code)


def _check_structure(source: Path | str, recipe: Recipe, trust_remote_code: bool) -> None:
    """Look at the model without its weights; the loader says what is wrong with its config."""
    options = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **options)
    except Exception:
        return
    if recipe.calibration.length:
        check_length(model, recipe.calibration.length)
    if not fused_expert_names(model):  # experts get their names when they are split
        find_targets(model, recipe.include, recipe.exclude)
