"""From a compressed model to a better one of the same size, by training what it stores."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.pipeline.calibrate import calibrate, calibration_blocks, default_length
from spectrim.pipeline.recipe import Recipe, RefinementRecipe
from spectrim.pipeline.replace import cast_for_saving
from spectrim.refinement import REFINEMENTS, RunContext, required_statistics
from spectrim.statistics import Calibration

_SHARE = 10
"""Of a stage's steps, the first and the last tenth are recorded."""


def refine(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    progress: RunContext | None = None,
) -> PreTrainedModel:
    """`compressed` after the recipe's refinements, in float32, trained on calibration text.

    A model in float32 is trained in place, another dtype in a copy; cast the result with
    `cast_for_saving`. The original is not changed. Judge the result on other text. Raises
    NumericalError naming the step whose loss is not finite, InputError for unusable text.
    """
    compressed = cast_for_saving(compressed, torch.float32)
    given = progress or RunContext()
    given = replace(given, calibration=_statistics(original, tokenizer, recipe, given))
    for step in recipe.refinement:
        options = REFINEMENTS.options(step.name, step.options)
        blocks = calibration_blocks(
            original, tokenizer, _with_sequences(original, recipe, step)
        )
        own = replace(given, losses={})
        module = REFINEMENTS.get(step.name)
        compressed = module.refine(original, compressed, blocks, options, own)
        given.losses.update({f"{step.name}, {k}": v for k, v in own.losses.items()})
        record(compressed, step.name, options, blocks, own)
    return compressed


def _statistics(
    original: PreTrainedModel, tokenizer: Any, recipe: Recipe, progress: RunContext
) -> Calibration | None:
    """What a refinement of the recipe requires: the recipe's own calibration of the original,
    out of the workspace where it has it; None where none requires any."""
    steps = [(step.name, step.options) for step in recipe.refinement]
    wanted = {s for step in steps for s in required_statistics(*step)}
    held = progress.calibration
    if not wanted or (held is not None and wanted <= set(held.states)):
        return held
    return calibrate(original, tokenizer, recipe, progress)


def _with_sequences(model: PreTrainedModel, recipe: Recipe, step: RefinementRecipe) -> Recipe:
    """The calibration's text, cut to as many sequences as the refinement is to see.

    Of a task it sees every example unless it says how many.
    """
    calibration = recipe.calibration
    every = sys.maxsize if recipe.task is not None else calibration.sequences
    wanted = step.sequences or every
    if step.tokens is not None:
        wanted = math.ceil(step.tokens / (calibration.length or default_length(model)))
    return recipe.with_changes(calibration=replace(calibration, sequences=wanted))


def record(
    model: PreTrainedModel,
    name: str,
    options: Any,
    blocks: TokenBlocks,
    progress: RunContext,
) -> None:
    """Name, options, data and losses (first and last tenth of each stage) in the config."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return
    entry = {
        "name": name,
        "options": asdict(options),
        "data": {"source": blocks.source, "fingerprint": blocks.fingerprint}
        | {"sequences": len(blocks)},
        "losses": {stage: _ends(losses) for stage, losses in progress.losses.items()},
    }
    config.provenance.setdefault("refinement", []).append(entry)


def _ends(losses: list[float]) -> list[float]:
    count = max(1, len(losses) // _SHARE)
    return [sum(part) / count for part in (losses[:count], losses[-count:])]
