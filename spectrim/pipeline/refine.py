"""Improve a compressed model at its size, by training or rewriting what it stores."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.calibration_defaults import calibration_length
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.recipe import Recipe, RefinementRecipe
from spectrim.pipeline.replace import cast_for_saving
from spectrim.refinement import REFINEMENTS, Losses, TrainingInputs, required_statistics
from spectrim.runtime.context import RunContext
from spectrim.statistics import Calibration
from spectrim.training.sampled_sizes import SampledSizes

_SHARE = 10
"""Of a stage's steps, the first and the last tenth are recorded."""


def refine(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    context: RunContext | None = None,
    *,
    sizes: SampledSizes | None = None,
) -> PreTrainedModel:
    """Return `compressed` in float32 after the recipe's refinements on calibration text.

    sizes: to train, of a model that holds several. A model in float32 is changed in place,
    another dtype in a copy; cast the result with `cast_for_saving`. The original is not
    changed. Evaluate the result on other text. Raises NumericalError naming the step whose
    loss is not finite, InputError for unusable text.
    """
    compressed = cast_for_saving(compressed, torch.float32)
    context = context or RunContext()
    statistics = _statistics(original, tokenizer, recipe, context)
    for step in recipe.refinement:
        options = REFINEMENTS.options(step.name, step.options)
        blocks = calibration_blocks(
            original, tokenizer, _with_sequences(original, recipe, step)
        )
        inputs = TrainingInputs(original, compressed, blocks, statistics, sizes)
        losses = REFINEMENTS.get(step.name).refine(inputs, options, context)
        record(inputs, step.name, options, losses)
    return compressed


def _statistics(
    original: PreTrainedModel, tokenizer: Any, recipe: Recipe, context: RunContext
) -> Calibration | None:
    """Return what the refinements require of the recipe's calibration of the original."""
    required = {n for s in recipe.refinement for n in required_statistics(s.name, s.options)}
    if not required:
        return None
    calibration = calibrate(original, tokenizer, recipe, context)
    states = {name: calibration.states[name] for name in calibration.states if name in required}
    return replace(calibration, states=states)


def _with_sequences(model: PreTrainedModel, recipe: Recipe, step: RefinementRecipe) -> Recipe:
    """Return the recipe with as many calibration sequences as the refinement reads.

    For a task these are all examples, unless the refinement sets a number.
    """
    calibration = recipe.calibration
    every = sys.maxsize if recipe.task is not None else calibration.sequences
    wanted = step.sequences or every
    if step.tokens is not None:
        wanted = math.ceil(step.tokens / (calibration.length or calibration_length(model)))
    return recipe.with_changes(calibration=replace(calibration, sequences=wanted))


def record(inputs: TrainingInputs, name: str, options: Any, losses: Losses) -> dict[str, Any]:
    """Return name, options, data and losses (first and last tenth of a stage); they are
    recorded in the config of a compressed model.
    """
    blocks = inputs.blocks
    config = getattr(inputs.compressed.config, "quantization_config", None)
    entry = {
        "name": name,
        "options": asdict(options),
        "data": {"source": blocks.source, "fingerprint": blocks.fingerprint}
        | {"sequences": len(blocks)},
        "losses": {stage: _ends(steps) for stage, steps in losses.items()},
    }
    if config is not None:
        config.provenance.setdefault("refinement", []).append(entry)
    return entry


def _ends(losses: list[float]) -> list[float]:
    count = max(1, len(losses) // _SHARE)
    return [sum(part) / count for part in (losses[:count], losses[-count:])]
