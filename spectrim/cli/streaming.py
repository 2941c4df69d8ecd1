"""`spectrim compress --memory`: the whole model if it fits, else block by block."""

from __future__ import annotations

from dataclasses import replace

import torch

from spectrim import checkpoint
from spectrim.checkpoint.save_sharded import open_streamed, save_streamed
from spectrim.cli import console
from spectrim.cli.making import CompressArgs, dtype_of
from spectrim.cli.tracking import final_figures
from spectrim.errors import InputError
from spectrim.pipeline.memory_plan import MemoryPlan, bytes_of, plan_memory
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.streaming import (
    CompressedParts,
    check_streamable,
    decompose_streamed,
    for_streaming,
)
from spectrim.planning import Plan
from spectrim.refinement import RunContext
from spectrim.report.card import card_for
from spectrim.runtime.memory import peak_bytes, return_large_blocks


def within_memory(
    wanted: CompressArgs, recipe: Recipe, memory: str, progress: RunContext
) -> Recipe | None:
    """The recipe with batches that fit, for the whole model in memory; None when the model
    was too large for that, and has been streamed and saved."""
    limit = bytes_of(memory)
    check_streamable(recipe)
    opened = open_streamed(wanted.model, trust_remote_code=wanted.trust_remote_code)
    if opened.tokenizer is None:
        raise InputError(f"{wanted.model} has no tokenizer; put its files beside the model")
    return_large_blocks()
    chosen = plan_memory(opened, recipe, limit)
    console.note(str(chosen))
    if chosen.sizes is None:
        sized = replace(recipe.calibration, tokens_per_batch=chosen.tokens_per_batch)
        return recipe.with_changes(calibration=sized)
    recipe = for_streaming(chosen.fitted(recipe))
    with decompose_streamed(opened, recipe, chosen.sizes, progress) as decomposition:
        plan = wanted.plan(decomposition, recipe, progress)
        recipe = recipe.at_budget(plan.budget)
        dtype = dtype_of(recipe, checkpoint.stored_dtype(wanted.model) or torch.float32)
        parts = CompressedParts(opened, decomposition, plan, dtype)
        texts = {"recipe": recipe.to_yaml(), "plan": plan.to_yaml()}
        extras = {f"spectrim_{name}.yaml": text for name, text in texts.items()}
        options = checkpoint.SaveOptions(
            card=lambda: card_for(wanted.model, plan, recipe),
            extras=extras,
            overwrite=wanted.overwrite,
            source=wanted.model,
        )
        save_streamed(opened, parts, wanted.output, parts.config(), options)
    progress.log_metrics(final_figures(plan, wanted.output), None)
    _told(wanted, plan, chosen)
    return None


def _told(wanted: CompressArgs, plan: Plan, chosen: MemoryPlan) -> None:
    console.print_result(plan, wanted.json)
    peak = peak_bytes() / 2**20
    console.note(
        f"peak memory of this process {peak:,.0f} MiB, limit {chosen.limit / 2**20:,.0f}"
    )
    console.note(f"saved to {wanted.output}: `import spectrim`, then from_pretrained")
