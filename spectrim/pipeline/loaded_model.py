"""A model prepared for a run: in float32, with its tokenizer and its checkpoint's dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.checkpoint import check_dense, load, stored_dtype
from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.errors import InputError
from spectrim.models.offload.mapped import map_weights
from spectrim.pipeline.recipe import Recipe


@dataclass(frozen=True)
class LoadedModel:
    """A model to compress or to compare with.

    Attributes:
        model: in float32.
        tokenizer: of the model.
        dtype: of its checkpoint; results are saved in it unless the recipe names another.
        name: a directory or hub name, for cards and reports.
    """

    model: PreTrainedModel
    tokenizer: Any
    dtype: torch.dtype
    name: str = ""

    def dtype_for(self, recipe: Recipe) -> torch.dtype:
        """Return the dtype that results of the recipe are saved in."""
        return getattr(torch, recipe.save_dtype) if recipe.save_dtype else self.dtype

    def with_dtype(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the dtype of its results stated."""
        return recipe.with_changes(
            save_dtype=str(self.dtype_for(recipe)).removeprefix("torch.")
        )

    def with_save_dtype(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the dtype stated if its budget counts bytes."""
        return recipe if recipe.quantization is None else self.with_dtype(recipe)


def load_model(
    name: str, trust_remote_code: bool = False, budget: float | None = None
) -> LoadedModel:
    """Load a model in float32 with its tokenizer. Raises InputError if one is missing.

    budget: the size of an elastic checkpoint, by default its largest.
    """
    options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    model, tokenizer = load(name, budget=budget, **options)
    return _loaded(name, model, tokenizer)


def load_original(
    name: str, trust_remote_code: bool = False, mapped: bool = False
) -> LoadedModel:
    """Load a model to compress. Raises ModelError for one that is compressed already.

    mapped: its weights are pages of a file, which the processes of a machine share; a model
    that names no blocks, or is in a GGUF file, cannot be mapped.
    """
    check_dense(name)
    if not mapped:
        return load_model(name, trust_remote_code)
    opened = open_streamed(name, trust_remote_code=trust_remote_code)
    return _loaded(name, map_weights(opened.streamed), opened.tokenizer)


def _loaded(name: str, model: PreTrainedModel, tokenizer: Any) -> LoadedModel:
    if tokenizer is None:
        raise InputError(f"{name} has no tokenizer; put its files beside the model")
    return LoadedModel(model, tokenizer, stored_dtype(name) or torch.float32, name)
