"""`spectrim compress --memory`: the whole model if it fits, else block by block."""

from __future__ import annotations

from dataclasses import replace

import torch

from spectrim import checkpoint
from spectrim.checkpoint.save_sharded import (
    OffloadedCheckpoint,
    open_streamed,
    save_streamed,
)
from spectrim.cli import console
from spectrim.cli.compress import Request, print_answer
from spectrim.cli.tracking import final_metrics
from spectrim.errors import InputError
from spectrim.evaluation import size
from spectrim.pipeline.compress import choose_plan
from spectrim.pipeline.memory_plan import MemoryPlan, bytes_of, plan_memory
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.streaming import (
    CompressedParts,
    decompose_streamed,
    for_streaming,
)
from spectrim.planning import Plan
from spectrim.report.card import card_for
from spectrim.report.collect import plan_facts
from spectrim.report.facts import Part
from spectrim.report.summary import outcome, summary
from spectrim.runtime.context import RunContext
from spectrim.runtime.memory import peak_bytes, return_large_blocks


def within_memory(
    wanted: Request, recipe: Recipe, memory: str, context: RunContext, dry_run: bool
) -> Recipe | None:
    """Return the recipe with batches that fit if the whole model does.

    None if the model is too large for that: it has been streamed and saved, or, in a dry run,
    the way has been told.
    """
    limit = bytes_of(memory)
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
    if dry_run:
        return None
    with decompose_streamed(opened, recipe, chosen.sizes, context) as decomposition:
        plan = choose_plan(decomposition, recipe, wanted.options, context)
        recipe = recipe.at_budget(plan.budget)
        stored = checkpoint.stored_dtype(wanted.model) or torch.float32
        dtype = getattr(torch, recipe.save_dtype) if recipe.save_dtype else stored
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
    context.log_metrics(final_metrics(plan, wanted.output), None)
    _print(wanted, opened, plan, recipe, chosen)
    return None


def _print(
    wanted: Request,
    opened: OffloadedCheckpoint,
    plan: Plan,
    recipe: Recipe,
    chosen: MemoryPlan,
) -> None:
    facts = plan_facts(wanted.model, plan, recipe)
    sizes = [size.disk_bytes(place) for place in (opened.directory, wanted.output)]
    facts = replace(facts, parts=[Part("files", *sizes)])
    console.print_result(plan, outcome(facts), wanted.json)
    peak = peak_bytes() / 2**20
    console.note(
        f"peak memory of this process {peak:,.0f} MiB, limit {chosen.limit / 2**20:,.0f}"
    )
    console.note(f"saved to {wanted.output}: `import spectrim`, then from_pretrained")
    print_answer(wanted, summary(facts))
