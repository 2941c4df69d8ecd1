"""Compression as one function: from a model and a recipe to a compressed model with its plan.

    tokens -> statistics -> spectra -> measured curves -> plan -> layers -> refined -> stored

The command line, `bench` and the live page run these functions; each step is public under its
own name as well. A model that is larger than memory takes the same trip part by part, without
the steps that need it whole.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.checkpoint.load import is_bundled
from spectrim.errors import InputError, NumericalWarning
from spectrim.models.kind import kind_of
from spectrim.models.offload import StreamedModel
from spectrim.models.source import ModelSource, open_source
from spectrim.pipeline import compatibility
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.early_checks import check_text
from spectrim.pipeline.elastic import (
    at_largest,
    hold_sizes,
    plan_elastic,
    quantize_sizes,
    sampled_sizes,
)
from spectrim.pipeline.embedding import compress_embeddings
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.latency_table import latency_table
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.prune_for_task import prune_for_task
from spectrim.pipeline.quantize_factors import needs_calibration, quantize_factors
from spectrim.pipeline.recipe import QuantizationRecipe, Recipe
from spectrim.pipeline.refine import refine
from spectrim.pipeline.replace import (
    CompressedParts,
    cast_for_saving,
    check_plan,
    compressed_structure,
    replace_layers,
)
from spectrim.planning import Decomposition, Plan, follow_plan, make_plan, plan_for_loss
from spectrim.runtime import distributed
from spectrim.runtime.context import RunContext


@dataclass(frozen=True)
class CompressOptions:
    """Options of a run besides its recipe.

    Attributes:
        plan: ranks to use, in place of an allocation.
        target_loss: the smallest model within this predicted loss, nats per token.
        dtype: of the result if the recipe leaves `save_dtype` open; default the model's.
    """

    plan: Plan | None = None
    target_loss: float | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True, repr=False)
class CompressionResult:
    """A compressed model and how it was made.

    Attributes:
        model: in the dtype to be saved; with `elastic` it holds all sizes (`resize`).
        plan: the rank of every layer.
        recipe: what was done, with the budget that the plan keeps.
        decomposition: the source of the factors; None if bases were pruned for a task.
        prune_steps: one JSON object per pruning, a line each; None without pruning.
        parts: the tensors of a model that was compressed part by part; `model` is then its
            structure alone.
    """

    model: PreTrainedModel
    plan: Plan
    recipe: Recipe
    decomposition: Decomposition | None = None
    prune_steps: str | None = None
    parts: CompressedParts | None = None

    def __repr__(self) -> str:
        return f"CompressionResult({type(self.model).__name__}, {self.plan!r})"

    def _repr_html_(self) -> str:
        return self.plan._repr_html_()


@torch.inference_mode(False)
@torch.enable_grad()
def compress(
    model: PreTrainedModel | ModelSource,
    tokenizer: Any,
    recipe: Recipe | None = None,
    context: RunContext | None = None,
    *,
    options: CompressOptions | None = None,
) -> CompressionResult:
    """Compress `model` by a recipe.

    Args:
        model: in float32; it is not changed, except that fused experts are split. Of one on
            disk, the factors stay in files of the cache until they are saved.
        tokenizer: of the model, for calibration and refinement text, or examples with labels.
        recipe: default `Recipe()`; `load_recipe(NAME)` gives a preset.
        context: cache, progress and metrics.
        options: a plan to follow, a target loss, the result's dtype.

    Raises:
        InputError: the recipe, its text or the options cannot be used.
        ModelError: the model has no layers to compress or unusable weights.
        NumericalError: a step fails in the given numbers.
    """
    context, options = context or RunContext(), options or CompressOptions()
    source = open_source(model)
    recipe = prepare_recipe(recipe or Recipe(), options)
    recipe = recipe if source.whole else compatibility.in_parts(recipe)
    original = _original(source, tokenizer, options.dtype)
    check_kind(original.model, recipe)
    name = getattr(original.model.config, "_name_or_path", "")
    check_text(recipe, is_bundled(str(name)))
    recipe = original.with_save_dtype(recipe)
    if recipe.pruning is not None:
        return finish(original, prune(original, recipe, context), context)
    if options.plan is not None:  # a plan for another model is refused before the calibration
        prepare(source, recipe, context.cache)
        check_plan(original.model, options.plan)
    decomposition = factorize(source, tokenizer, recipe, context)
    if recipe.elastic is not None:
        return elastic(original, decomposition, recipe, context)
    plan = choose_plan(decomposition, recipe, options, context)
    return finish(original, cut(original, decomposition, plan, recipe), context)


def _original(source: ModelSource, tokenizer: Any, dtype: torch.dtype | None) -> LoadedModel:
    streamed = source if isinstance(source, StreamedModel) else None
    dtype = dtype or source.model.dtype
    return LoadedModel(source.model, tokenizer, dtype, streamed=streamed)


def prepare_recipe(recipe: Recipe, options: CompressOptions) -> Recipe:
    """Return the recipe, adapted to a plan to follow or to sizes to hold. Raises InputError."""
    recipe = at_largest(recipe)
    if (plan := options.plan) is not None:
        if not plan.layers:
            raise InputError("the plan has no layers; create one with `spectrim plan MODEL -o`")
        recipe = recipe.with_changes(method=plan.method, layer=plan.layer, budget=plan.budget)
    ways = {
        compatibility.FOLLOWED_PLAN: options.plan is not None,
        compatibility.TARGET_LOSS: options.target_loss is not None,
    }
    compatibility.check(
        recipe, compatibility.COMPRESS, *(way for way, on in ways.items() if on)
    )
    return recipe


def check_kind(model: PreTrainedModel, recipe: Recipe) -> None:
    """Raise InputError for what a recipe asks of a model that is not causal."""
    ways = compatibility.ways_of(kind_of(model))
    if ways and distributed.num_processes() > 1:
        ways.append(compatibility.PROCESSES)
    compatibility.check(recipe, *ways)


def choose_plan(
    decomposition: Decomposition, recipe: Recipe, options: CompressOptions, context: RunContext
) -> Plan:
    """Return the plan to follow, or one at the target loss, the time or the budget.

    With `elastic` it is the one of the largest size.
    """
    if options.plan is not None:
        return follow_plan(options.plan, decomposition, recipe.planning)
    if recipe.elastic is not None:
        return plan_elastic(decomposition, recipe)[1]
    if options.target_loss is not None:
        return plan_for_loss(decomposition, recipe.planning, options.target_loss)
    times = latency_table(decomposition, recipe, context) if recipe.latency else None
    plan = make_plan(decomposition, recipe.planning, times)
    if recipe.quantization is not None and times is None:
        _warn_of_idle_budget(plan, recipe.quantization)
    return plan


def _warn_of_idle_budget(plan: Plan, quantization: QuantizationRecipe) -> None:
    if not plan.ranks and plan.kept < plan.budget:
        warnings.warn(
            f"{quantization.bits} bits alone keep {plan.kept:.1%} of the layers' bytes, less "
            f"than budget {plan.budget:g}: no rank is cut; "
            f"ranks fall below budget {plan.kept:.2f}",
            NumericalWarning,
            stacklevel=3,
        )


def elastic(
    original: LoadedModel, decomposition: Decomposition, recipe: Recipe, context: RunContext
) -> CompressionResult:
    """Return the model that holds all sizes, refined, with the plan of the largest."""
    sizes, plan = plan_elastic(decomposition, recipe)
    larger = hold_sizes(original.model, decomposition, sizes, plan)
    if recipe.refinement:
        sampled = sampled_sizes(sizes)
        larger = refine(
            original.model, larger, original.tokenizer, recipe, context, sizes=sampled
        )
    larger = cast_for_saving(larger, original.dtype_for(recipe))
    if recipe.quantization is not None:
        larger = quantize_sizes(larger, recipe.quantization)
    return CompressionResult(larger, plan, recipe, decomposition)


def cut(
    original: LoadedModel, decomposition: Decomposition, plan: Plan, recipe: Recipe
) -> CompressionResult:
    """Replace the planned layers by factored ones, not yet refined or stored."""
    recipe = recipe.at_budget(plan.budget)
    if original.streamed is None:
        smaller = replace_layers(original.model, decomposition, plan)
        return CompressionResult(smaller, plan, recipe, decomposition)
    structure = compressed_structure(original.streamed, decomposition, plan)
    dtype = original.dtype_for(recipe)
    parts = CompressedParts(original.streamed, decomposition, plan, dtype)
    return CompressionResult(structure, plan, recipe, decomposition, parts=parts)


def finish(
    original: LoadedModel, result: CompressionResult, context: RunContext
) -> CompressionResult:
    """Factor tables, refine, and store in the recipe's dtype and bits."""
    result = refined(original, with_tables(original, result, context), context)
    return store(original, result, context)


def with_tables(
    original: LoadedModel, result: CompressionResult, context: RunContext
) -> CompressionResult:
    """Factor the embedding table if the recipe has `embeddings`."""
    smaller = compress_embeddings(
        original.model, result.model, original.tokenizer, result.recipe, context
    )
    return replace(result, model=smaller)


def refined(
    original: LoadedModel, result: CompressionResult, context: RunContext
) -> CompressionResult:
    """Run the recipe's refinements."""
    if not result.recipe.refinement:
        return result
    smaller = refine(original.model, result.model, original.tokenizer, result.recipe, context)
    return replace(result, model=smaller)


def store(
    original: LoadedModel, result: CompressionResult, context: RunContext | None = None
) -> CompressionResult:
    """Cast to the dtype to be saved and quantize the factors if the recipe quantizes."""
    recipe, calibration = result.recipe, None
    smaller = cast_for_saving(result.model, original.dtype_for(recipe))
    if needs_calibration(recipe):
        calibration = calibrate(original.model, original.tokenizer, recipe, context)
    smaller = quantize_factors(smaller, result.plan, recipe, calibration)
    return replace(result, model=smaller)


def prune(original: LoadedModel, recipe: Recipe, context: RunContext) -> CompressionResult:
    pruned = prune_for_task(original.model, original.tokenizer, recipe, context)
    return CompressionResult(
        pruned.model, pruned.plan, recipe, prune_steps=pruned.prune_steps()
    )
