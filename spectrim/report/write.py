"""A compressed model, with all that stands beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spectrim import checkpoint
from spectrim.report.card import card_for
from spectrim.report.facts import EVENTS_FILE
from spectrim.report.load import CompressionResult, Pair, compare, facts_of, report_extras
from spectrim.report.pruning_figure import with_prunings


@dataclass(frozen=True)
class OutputSpec:
    """Where to, and whether over an earlier result and with a page."""

    output: Path
    overwrite: bool = False
    page: bool = True


def write_result(
    made: CompressionResult, pair: Pair, place: OutputSpec, events: str | None = None
) -> None:
    """Card, recipe, plan, facts, the page, and where bases were selected the prunings.

    Raises InputError where it cannot be written.
    """
    facts = with_prunings(facts_of(made, pair), events or "")
    if place.page:
        facts = compare(facts, pair, made.recipe)
    extras = report_extras(facts, place.page) | {
        "spectrim_recipe.yaml": made.recipe.to_yaml(),
        "spectrim_plan.yaml": made.plan.to_yaml(),
    }
    if events is not None:
        extras[EVENTS_FILE] = events
    card = card_for(made.model, made.plan, made.recipe)
    options = checkpoint.SaveOptions(card=card, extras=extras, overwrite=place.overwrite)
    config = pair.smaller.config.quantization_config
    checkpoint.save_together(pair.smaller, pair.tokenizer, place.output, config, options)
