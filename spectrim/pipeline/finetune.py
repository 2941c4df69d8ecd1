"""Fine-tune a compressed model on a text or a task, at the same ranks and bytes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from spectrim.adapters.lora import AdapterOptions, train_adapters
from spectrim.adapters.qlora import is_quantized, train_qlora
from spectrim.checkpoint import SpectrimConfig
from spectrim.data import TokenBlocks
from spectrim.errors import InputError, ModelError
from spectrim.pipeline.calibrate import calibration_blocks
from spectrim.pipeline.quantize_factors import quantize_all, update_config_ranks
from spectrim.pipeline.recipe import CalibrationRecipe, QuantizationRecipe, Recipe, TaskRecipe
from spectrim.pipeline.refine import record
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.runtime.context import RunContext

QUANTIZED_BASES = {
    "int4": QuantizationRecipe(4, "rtn", 32),
    "nf4": QuantizationRecipe(4, "nf4", 64),
}
"""By kernels through which gradients pass to the input; torchao's int4 has no such."""


@dataclass(frozen=True)
class FinetuneSettings:
    """What to learn: `data` is text (every token counts) or `task` examples (the answers' do).

    lora: rank of PEFT adapters; None trains the factors themselves and all else in the blocks.
    quantize_base "int4" or "nf4": quantise all layers first, and leave adapters beside them.
    learning_rate None: 5e-4 for factors, 2e-3 for adapters. steps None: `epochs` over the rows.
    length None: of text as in a calibration, of a task the model's context.
    """

    data: str | None = None
    task: str | None = None
    field: str | None = None
    sequences: int | None = None
    length: int | None = None
    lora: int | None = None
    quantize_base: str | None = None
    epochs: int = 3
    steps: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.data is None) == (self.task is None):
            raise InputError("give one of data (text) and task (examples with answers)")
        if self.quantize_base not in (None, *QUANTIZED_BASES):
            raise InputError(
                f"a base is quantised to {' or '.join(QUANTIZED_BASES)}, not to "
                f"'{self.quantize_base}'"
            )
        if self.quantize_base is not None and self.lora is None:
            raise InputError(
                "quantised factors are not trained; give adapters a rank: --lora 8"
            )

    @property
    def training(self) -> dict[str, Any]:
        given = {
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        rate = self.learning_rate
        return given if rate is None else given | {"learning_rate": rate}


_TEXT_SEQUENCES = 2000


def finetune(
    model: PreTrainedModel,
    tokenizer: Any,
    settings: FinetuneSettings,
    context: RunContext | None = None,
) -> PreTrainedModel:
    """Train `model` (compressed, float32) in place and return it.

    It keeps its ranks, and its config records what it was trained on. An interrupted run
    resumes from the cache. Raises InputError for data that cannot be
    read, ModelError for a model that is not compressed, NumericalError for a step whose loss
    is not finite.
    """
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, SpectrimConfig):
        raise ModelError(
            f"this {type(model).__name__} is not compressed; compress it first, or train it "
            "with transformers' Trainer"
        )
    if settings.quantize_base is not None:
        if is_quantized(model):
            raise ModelError("the model is quantised already; leave out --quantize-base")
        quantize_all(model, QUANTIZED_BASES[settings.quantize_base])
    elif config.inner is not None and settings.lora is None:
        raise ModelError(
            "the factors are quantised; train adapters beside them (--lora 8), or train before "
            "they are (--quantize)"
        )
    context = context or RunContext()
    blocks = _blocks(model, tokenizer, settings)
    inputs = TrainingInputs(model, model, blocks)
    options: Any
    if settings.lora is None:
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
    record(inputs, name, options, losses)
    return model


def _blocks(model: PreTrainedModel, tokenizer: Any, settings: FinetuneSettings) -> TokenBlocks:
    every = sys.maxsize if settings.task is not None else _TEXT_SEQUENCES
    calibration = CalibrationRecipe(
        data=settings.data or "python",
        field=settings.field,
        sequences=settings.sequences or every,
        length=settings.length,
        seed=settings.seed,
    )
    task = None
    if settings.task is not None:
        task = TaskRecipe(data=settings.task, length=settings.length)
    return calibration_blocks(model, tokenizer, Recipe(calibration=calibration, task=task))
