"""Fine-tune a model on a text or a task, a compressed one at the same ranks and bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.adapters.lora import AdapterOptions, train_adapters
from spectrim.adapters.qlora import is_quantized, train_qlora
from spectrim.adapters.train import SpectralOptions, train_spectral
from spectrim.checkpoint import SpectrimConfig
from spectrim.data import TokenBlocks
from spectrim.errors import ModelError
from spectrim.pipeline.finetune_settings import QUANTIZED_BASES, FinetuneSettings
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.quantize_factors import quantize_all, update_config_ranks
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe, TaskRecipe
from spectrim.pipeline.refine import record
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.runtime.context import RunContext

_TEXT_SEQUENCES = 2000


def finetune(
    model: PreTrainedModel,
    tokenizer: Any,
    settings: FinetuneSettings,
    context: RunContext | None = None,
) -> PreTrainedModel:
    """Train `model` (float32) in place and return it; without `adapter` it is compressed.

    It keeps its ranks, and its config records what it was trained on. An interrupted run
    resumes from the cache. Raises InputError for data that cannot be read, ModelError for a
    model that is not compressed, NumericalError for a step whose loss is not finite.
    """
    finetune_and_record(model, tokenizer, settings, context or RunContext())
    return model


def finetune_and_record(
    model: PreTrainedModel,
    tokenizer: Any,
    settings: FinetuneSettings,
    context: RunContext,
    *,
    adapter_directory: Path | None = None,
) -> dict[str, Any]:
    """Train as `finetune` does and return what it records.

    Args:
        adapter_directory: where a spectral adapter is saved by itself before it is merged; not
            written where the base is quantized, as the adapter is then a part of the model.
    """
    _prepare(model, settings)
    blocks = _blocks(model, tokenizer, settings)
    inputs = TrainingInputs(model, model, blocks)
    options: Any
    if settings.adapter is not None:
        name = settings.adapter
        options = SpectralOptions.of(name, settings.adapter_options, settings.training)
        quantized = is_quantized(model)
        directory = None if quantized else adapter_directory
        losses = train_spectral(model, blocks, options, context, directory=directory)
        if quantized:
            update_config_ranks(model)
    elif settings.lora is None:
        name, module = "finetune", REFINEMENTS.get("finetune")
        options = REFINEMENTS.options(name, settings.training)
        losses = module.refine(inputs, options, context)
    else:
        options = AdapterOptions(rank=settings.lora, **settings.training)
        if is_quantized(model):
            name = "qlora"
            losses = train_qlora(model, blocks, options, context)
            update_config_ranks(model)
        else:
            name = "lora"
            losses = train_adapters(model, blocks, options, context)
    return record(inputs, name, options, losses)


def _prepare(model: PreTrainedModel, settings: FinetuneSettings) -> None:
    """Quantize the base where that is asked for. Raises ModelError for what does not fit."""
    config = getattr(model.config, "quantization_config", None)
    compressed = isinstance(config, SpectrimConfig)
    if not compressed and (settings.adapter is None or settings.quantize_base is not None):
        raise ModelError(
            f"this {type(model).__name__} is not compressed; compress it first, put an adapter "
            "on it (--adapter), or train it with transformers' Trainer"
        )
    if settings.quantize_base is not None:
        if is_quantized(model):
            raise ModelError("the model is quantized already; remove --quantize-base")
        quantize_all(model, QUANTIZED_BASES[settings.quantize_base])
        return
    inner = config.inner if isinstance(config, SpectrimConfig) else None
    if inner is not None and settings.lora is None and settings.adapter is None:
        raise ModelError(
            "the factors are quantized; train adapters beside them (--lora 8), or train "
            "before they are (--quantize)"
        )


def _blocks(model: PreTrainedModel, tokenizer: Any, settings: FinetuneSettings) -> TokenBlocks:
    every = sys.maxsize if settings.task is not None else _TEXT_SEQUENCES
    calibration = CalibrationRecipe(
        data=settings.data,
        field=settings.field,
        sequences=settings.sequences or every,
        length=settings.length,
        seed=settings.seed,
    )
    task = None
    if settings.task is not None:
        task = TaskRecipe(data=settings.task, length=settings.length)
    return calibration_blocks(model, tokenizer, Recipe(calibration=calibration, task=task))
