"""A model prepared for a run: in float32, with its tokenizer and its checkpoint's dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.checkpoint import (
    adapter_base,
    check_causal,
    check_dense,
    load,
    load_merged,
    stored_dtype,
)
from spectrim.checkpoint.save_sharded import OffloadedCheckpoint, open_streamed
from spectrim.errors import InputError
from spectrim.models.offload import StreamedModel
from spectrim.models.offload.mapped import map_weights
from spectrim.models.source import ModelSource, ResidentModel
from spectrim.pipeline.recipe import Recipe


@dataclass(frozen=True)
class LoadedModel:
    """A model to compress or to compare with.

    Attributes:
        model: in float32.
        tokenizer: of the model.
        dtype: of its checkpoint; results are saved in it unless the recipe names another.
        name: a directory or hub name, for cards and reports.
        streamed: where the tensors are read from if `model` is a structure without them.
    """

    model: PreTrainedModel
    tokenizer: Any
    dtype: torch.dtype
    name: str = ""
    streamed: StreamedModel | None = None

    @property
    def source(self) -> ModelSource:
        return ResidentModel(self.model) if self.streamed is None else self.streamed

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
    name: str,
    trust_remote_code: bool = False,
    budget: float | None = None,
    any_kind: bool = False,
    merge_adapter: bool = False,
) -> LoadedModel:
    """Load a model in float32 with its tokenizer. Raises InputError if one is missing.

    budget: the size of an elastic checkpoint, by default its largest. any_kind: whether other
    models than causal language models are taken; else they raise ModelError. merge_adapter:
    whether `name` is a PEFT adapter, to be merged into its base.
    """
    base = adapter_base(name) if merge_adapter else name
    if not any_kind:
        check_causal(base)
    options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    if merge_adapter:
        model, tokenizer = load_merged(name, **options)
    else:
        model, tokenizer = load(name, budget=budget, **options)
    if tokenizer is None:
        raise _no_tokenizer(name)
    return LoadedModel(model, tokenizer, stored_dtype(base) or torch.float32, name)


def load_original(
    name: str,
    trust_remote_code: bool = False,
    any_kind: bool = False,
    merge_adapter: bool = False,
    mapped: bool = False,
) -> LoadedModel:
    """Load a model to compress. Raises ModelError for one that is compressed already.

    mapped: its weights are pages of a file, which the processes of a machine share; a model
    that names no blocks, or is in a GGUF file, cannot be mapped.
    """
    check_dense(adapter_base(name) if merge_adapter else name)
    if not mapped or merge_adapter:
        return load_model(name, trust_remote_code, None, any_kind, merge_adapter)
    opened = open_streamed(name, trust_remote_code=trust_remote_code)
    original = streamed_original(name, opened)
    return replace(original, model=map_weights(opened.streamed), streamed=None)


def streamed_original(name: str, opened: OffloadedCheckpoint) -> LoadedModel:
    """Return a model whose tensors stay in its checkpoint until they are used."""
    if opened.tokenizer is None:
        raise _no_tokenizer(name)
    dtype = stored_dtype(name) or torch.float32
    return LoadedModel(opened.streamed.model, opened.tokenizer, dtype, name, opened.streamed)


def _no_tokenizer(name: str) -> InputError:
    return InputError(f"{name} has no tokenizer; put its files beside the model")
