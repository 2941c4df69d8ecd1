"""Train a model from scratch: a config, a text, a way to store weights and an optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from spectrim.checkpoint import (
    SaveOptions,
    SpectrimConfig,
    attach_config,
    resolve,
    save_compressed,
    save_dense,
)
from spectrim.checkpoint.load import load_tokenizer
from spectrim.errors import InputError, ModelError
from spectrim.models.fingerprint import model_fingerprint
from spectrim.models.hooks import evaluation_mode
from spectrim.optim import check_trainable
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe
from spectrim.pipeline.train_settings import TrainSettings, assigned
from spectrim.runtime.context import RunContext
from spectrim.training.losses import task_rows
from spectrim.training.pretraining import PRETRAINING, Job
from spectrim.training.schedule import Schedule

_TENTH = 10


@dataclass(frozen=True)
class TrainResult:
    """A trained model, and what it was trained on.

    Attributes:
        layers: entries of the layers that are not dense; a model without any is a plain one.
        record: method, optimizer, data, losses (first and last tenth) and parameters.
        losses: of every step.
        state_bytes: of the optimizer; 0 if the cache had the result.
    """

    model: PreTrainedModel
    tokenizer: Any
    layers: dict[str, dict[str, Any]]
    record: dict[str, Any]
    losses: list[float]
    state_bytes: int


def train(
    config: str | Path | PreTrainedModel,
    settings: TrainSettings,
    context: RunContext | None = None,
    *,
    tokenizer: Any = None,
) -> TrainResult:
    """Train a model with new weights. An interrupted run resumes from the cache.

    config: a directory or hub name whose config.json and tokenizer are used, or a model,
    which is trained in place, in float32, from the weights that it has. The model is in
    evaluation mode: without dropout, a step depends on its number alone. Raises InputError for
    unusable data or settings, ModelError for an unusable config, NumericalError for a step
    whose loss is not finite.
    """
    if settings.data is None:
        raise InputError("give --data, the text to train on")
    optimizer_options = assigned(settings.optimizer_option, "--optimizer-option")
    method_options = assigned(settings.method_option, "--method-option")
    check_trainable(settings.optimizer, optimizer_options)
    method = PRETRAINING.get(settings.method)
    options = PRETRAINING.options(settings.method, method_options)
    tokenizer = tokenizer or _tokenizer(config, settings)
    model = config if isinstance(config, PreTrainedModel) else new_model(config, settings.seed)
    job = _job(model, tokenizer, settings, optimizer_options, context or RunContext())
    job.key["method"] = [settings.method, asdict(options)]
    with evaluation_mode(model):
        layers = method.train(job, options)
    record = _record(job, settings, asdict(options))
    if layers:
        attach_config(model, SpectrimConfig(layers, provenance={"training": record}))
    outcome = job.outcome
    return TrainResult(model, tokenizer, layers, record, outcome.losses, outcome.state_bytes)


def new_model(config: str | Path, seed: int) -> PreTrainedModel:
    """Return a model with new weights, in float32. Raises InputError and ModelError."""
    source = resolve(config)
    try:
        given: PreTrainedConfig = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{config} has no config.json that transformers reads") from error
    if getattr(given, "quantization_config", None) is not None:
        raise ModelError(f"{config} is the config of a compressed model; name a dense one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(given, dtype=torch.float32)


def save_trained(result: TrainResult, output: str | Path, overwrite: bool = False) -> None:
    """Write a checkpoint: of the layers' own kinds, or a plain one if all are dense."""
    options = SaveOptions(overwrite=overwrite)
    config = getattr(result.model.config, "quantization_config", None)
    if isinstance(config, SpectrimConfig):
        save_compressed(result.model, result.tokenizer, output, config, options)
        return
    provenance = {"training": result.record}
    save_dense(result.model, result.tokenizer, output, provenance, options)


def _tokenizer(config: Any, settings: TrainSettings) -> Any:
    if settings.tokenizer is None and isinstance(config, PreTrainedModel):
        raise InputError("give the tokenizer of the model")
    name = settings.tokenizer or config
    source = resolve(name)
    tokenizer = load_tokenizer(source, {})
    if tokenizer is None:
        raise InputError(f"{name} has no tokenizer; name one with --tokenizer")
    return tokenizer


def _job(
    model: PreTrainedModel,
    tokenizer: Any,
    settings: TrainSettings,
    optimizer_options: dict[str, Any],
    context: RunContext,
) -> Job:
    calibration = CalibrationRecipe(
        data=settings.data,
        field=settings.field,
        sequences=settings.sequences or settings.steps * settings.batch_size,
        length=settings.length,
        seed=settings.seed,
    )
    blocks = calibration_blocks(model, tokenizer, Recipe(calibration=calibration))
    rate, rows = settings.rate, min(settings.batch_size, len(blocks))
    warmup = int(settings.warmup_ratio * settings.steps)
    schedule = Schedule(settings.steps, rows, rate, warmup, settings.seed)
    key = {"training": asdict(settings), "model": model_fingerprint(model)}
    return Job(
        model,
        task_rows(blocks),
        schedule,
        key | {"data": blocks.fingerprint},
        context,
        optimizer=settings.optimizer,
        options=optimizer_options,
        rest_rate=settings.rest_learning_rate / rate,
    )


def _record(job: Job, settings: TrainSettings, options: dict[str, Any]) -> dict[str, Any]:
    losses = job.outcome.losses
    count = max(1, len(losses) // _TENTH)
    ends = [sum(part) / count for part in (losses[:count], losses[-count:])]
    return {
        "method": settings.method,
        "method_options": options,
        "optimizer": settings.optimizer,
        "learning_rate": job.schedule.learning_rate,
        "steps": job.schedule.steps,
        "data": {"source": job.rows.source, "fingerprint": job.rows.fingerprint},
        "losses": ends,
        "parameters": sum(p.numel() for p in job.model.parameters()),
    }
