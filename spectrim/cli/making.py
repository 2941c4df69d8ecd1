"""What `spectrim compress` does once its words are read, with the whole model in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim import checkpoint
from spectrim.errors import InputError
from spectrim.pipeline.calibrate import prepare
from spectrim.pipeline.embedding import compress_embeddings
from spectrim.pipeline.latency_table import latency_table
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.prune_for_task import prune_for_task
from spectrim.pipeline.quantize_factors import check_quantization, quantize_factors
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.refine import refine
from spectrim.pipeline.replace import cast_for_saving, check_plan, replace_layers
from spectrim.planning import Decomposition, Plan, plan_for_loss
from spectrim.report.load import CompressionResult
from spectrim.runtime.context import RunContext


@dataclass(frozen=True)
class CompressArgs:
    """What the command line asks for besides a recipe."""

    model: str
    output: Path
    followed: Plan | None = None
    target_loss: float | None = None
    overwrite: bool = False
    json: bool = False
    page: bool = True
    trust_remote_code: bool = False

    def checked(self, recipe: Recipe) -> Recipe:
        """As a plan that is followed changes it. Raises InputError for what cannot be done."""
        if (plan := self.followed) is not None:
            recipe = recipe.with_changes(
                method=plan.method, layer=plan.layer, budget=plan.budget
            )
        check_quantization(recipe)
        checkpoint.check_output(self.output, self.overwrite)
        return recipe

    def plan(self, decomposition: Decomposition, recipe: Recipe, progress: RunContext) -> Plan:
        return self.followed or choose_plan(decomposition, recipe, self.target_loss, progress)


@dataclass(frozen=True)
class LoadedModel:
    """Model in float32, tokenizer, and the dtype its checkpoint is stored in."""

    model: PreTrainedModel
    tokenizer: Any
    stored: torch.dtype


@dataclass(frozen=True)
class Result:
    """events: of the prunings, where bases were selected."""

    model: PreTrainedModel
    made: CompressionResult
    prune_steps: str | None = None


def with_save_dtype(recipe: Recipe, stored: torch.dtype) -> Recipe:
    """With the dtype that bytes are counted in, where the budget counts them."""
    if recipe.quantization is None or recipe.save_dtype is not None:
        return recipe
    return recipe.with_changes(save_dtype=str(stored).removeprefix("torch."))


def choose_plan(
    decomposition: Decomposition,
    recipe: Recipe,
    target_loss: float | None,
    progress: RunContext,
) -> Plan:
    if target_loss is not None:
        if recipe.latency is not None:
            raise InputError("choose one of --target-loss and --latency-budget")
        return plan_for_loss(decomposition, recipe, target_loss)
    times = None
    if recipe.latency is not None:
        times = latency_table(decomposition, recipe, progress)
    return run_plan(decomposition, recipe, times)


def dtype_of(recipe: Recipe, stored: torch.dtype) -> torch.dtype:
    return getattr(torch, recipe.save_dtype) if recipe.save_dtype else stored


def make(
    loaded: LoadedModel, wanted: CompressArgs, recipe: Recipe, progress: RunContext
) -> Result:
    """Cut, trained and in few bits, as the recipe says; in the dtype that is saved."""
    recipe = with_save_dtype(recipe, loaded.stored)
    cut = _cut if recipe.pruning is None else _prune
    result = cut(loaded, wanted, recipe, progress)
    original, tokenizer, recipe = loaded.model, loaded.tokenizer, result.made.recipe
    smaller = compress_embeddings(original, result.model, tokenizer, recipe, progress)
    if recipe.refinement:
        smaller = refine(original, smaller, tokenizer, recipe, progress)
    smaller = cast_for_saving(smaller, dtype_of(recipe, loaded.stored))
    return replace(result, model=quantize_factors(smaller, result.made.plan, recipe))


def _prune(
    loaded: LoadedModel, wanted: CompressArgs, recipe: Recipe, progress: RunContext
) -> Result:
    special = prune_for_task(loaded.model, loaded.tokenizer, recipe, progress)
    return Result(
        special.model,
        CompressionResult(wanted.model, special.plan, recipe),
        special.prune_steps(),
    )


def _cut(
    loaded: LoadedModel, wanted: CompressArgs, recipe: Recipe, progress: RunContext
) -> Result:
    """A plan that is followed is checked before the work."""
    model = loaded.model
    if wanted.followed:
        prepare(model, recipe)
        check_plan(model, wanted.followed)
    decomposition = factorize(model, loaded.tokenizer, recipe, progress)
    plan = wanted.plan(decomposition, recipe, progress)
    recipe = recipe.at_budget(plan.budget)
    dtype = None if recipe.refinement else dtype_of(recipe, loaded.stored)
    smaller = replace_layers(model, decomposition, plan, dtype)
    return Result(smaller, CompressionResult(wanted.model, plan, recipe, decomposition))
