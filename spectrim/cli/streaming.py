"""`spectrim compress --memory`: the whole model if it fits, else block by block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spectrim import hub, pipeline
from spectrim.cli import show
from spectrim.errors import InputError
from spectrim.hub.stream import open_streamed, save_streamed
from spectrim.pipeline.memory import MemoryPlan, bytes_of, plan_memory
from spectrim.pipeline.streaming import (
    CompressedParts,
    check_streamable,
    streamable,
    streamed_decomposition,
)
from spectrim.planning import Decomposition, Plan, plan_for_loss
from spectrim.recipe import Recipe
from spectrim.refinement import Progress
from spectrim.report.card import card_for
from spectrim.streaming.memory import peak_bytes, return_large_blocks


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for besides a recipe."""

    model: str
    output: Path
    followed: Plan | None
    target_loss: float | None
    overwrite: bool
    json: bool = False

    def plan(self, decomposition: Decomposition, recipe: Recipe) -> Plan:
        return self.followed or planned(decomposition, recipe, self.target_loss)


def planned(decomposition: Decomposition, recipe: Recipe, target_loss: float | None) -> Plan:
    if target_loss is not None:
        return plan_for_loss(decomposition, recipe, target_loss)
    return pipeline.plan(decomposition, recipe)


def within_memory(
    wanted: Wanted, recipe: Recipe, memory: str, progress: Progress
) -> Recipe | None:
    """The recipe with batches that fit, for the whole model in memory; None when the model
    was too large for that, and has been streamed and saved."""
    limit = bytes_of(memory)
    check_streamable(recipe)
    opened = open_streamed(wanted.model)
    if opened.tokenizer is None:
        raise InputError(f"{wanted.model} has no tokenizer; put its files beside the model")
    return_large_blocks()
    chosen = plan_memory(opened, recipe, limit)
    show.note(str(chosen))
    if chosen.sizes is None:
        sized = replace(recipe.calibration, tokens_per_batch=chosen.tokens_per_batch)
        return recipe.with_changes(calibration=sized)
    recipe = streamable(chosen.fitted(recipe))
    with streamed_decomposition(opened, recipe, chosen.sizes, progress) as decomposition:
        plan = wanted.plan(decomposition, recipe)
        recipe = recipe.at_budget(plan.budget)
        dtype = _dtype(wanted.model, recipe)
        parts = CompressedParts(opened, decomposition, plan, dtype)
        texts = {"recipe": recipe.to_yaml(), "plan": plan.to_yaml()}
        extras = {f"spectrim_{name}.yaml": text for name, text in texts.items()}
        card = card_for(wanted.model, plan, recipe)
        options = hub.SaveOptions(card=card, extras=extras, overwrite=wanted.overwrite)
        save_streamed(opened, parts, wanted.output, parts.config(), options)
    _told(wanted, plan, chosen)
    return None


def _dtype(model: str, recipe: Recipe) -> torch.dtype:
    if recipe.save_dtype:
        return getattr(torch, recipe.save_dtype)
    return hub.stored_dtype(model) or torch.float32


def _told(wanted: Wanted, plan: Plan, chosen: MemoryPlan) -> None:
    show.made(plan, wanted.json)
    peak = peak_bytes() / 2**20
    show.note(f"peak memory of this process {peak:,.0f} MiB, limit {chosen.limit / 2**20:,.0f}")
    show.note(f"saved to {wanted.output}: `import spectrim`, then from_pretrained")
