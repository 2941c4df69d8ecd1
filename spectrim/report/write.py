"""Write a compressed model with everything that is stored beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spectrim import checkpoint
from spectrim.pipeline.compress import CompressionResult
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.report.card import card_for
from spectrim.report.facts import EVENTS_FILE, ReportData
from spectrim.report.load import compare, facts_of, report_extras
from spectrim.report.pruning_figure import with_prunings


@dataclass(frozen=True)
class OutputSpec:
    """The output directory, whether to overwrite it, and whether to write a page."""

    output: Path
    overwrite: bool = False
    page: bool = True


def write_result(
    original: LoadedModel, result: CompressionResult, place: OutputSpec
) -> ReportData:
    """Save the model with its card, recipe, plan, facts and page; return the facts.

    Raises InputError if it cannot be written.
    """
    facts = with_prunings(facts_of(original, result), result.prune_steps or "")
    if place.page:
        facts = compare(facts, original, result.model, result.recipe)
    extras = report_extras(facts, place.page) | {
        "spectrim_recipe.yaml": result.recipe.to_yaml(),
        "spectrim_plan.yaml": result.plan.to_yaml(),
    }
    if result.prune_steps is not None:
        extras[EVENTS_FILE] = result.prune_steps
    card = card_for(original.name, result.plan, result.recipe)
    options = checkpoint.SaveOptions(card=card, extras=extras, overwrite=place.overwrite)
    config = result.model.config.quantization_config
    checkpoint.save_together(result.model, original.tokenizer, place.output, config, options)
    return facts
