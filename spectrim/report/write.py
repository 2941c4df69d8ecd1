"""Save a compressed model first, and then all that stands beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spectrim import checkpoint
from spectrim.report.card import card_for
from spectrim.report.facts import EVENTS_FILE
from spectrim.report.load import CompressionResult, Pair, compare, facts_of, report_extras
from spectrim.report.pruning_figure import with_prunings
from spectrim.runtime import distributed


@dataclass(frozen=True)
class OutputSpec:
    """Where to write, whether over an earlier result, and what else to do.

    Attributes:
        page: Whether to write an HTML page.
        reload: Whether to load the result again to compare it, where memory allows.
    """

    output: Path
    overwrite: bool = False
    page: bool = True
    reload: bool = True


def write_result(
    made: CompressionResult, pair: Pair, place: OutputSpec, events: str | None = None
) -> None:
    """Write weights, card, recipe and plan, and then the data of the report and its page.

    A report that fails is a warning: the result is saved before it is begun.

    Args:
        events: The steps of a pruning, where there was one.

    Raises:
        InputError: The output cannot be written.
        CheckpointError: What was written differs from the model.
    """
    extras: dict[str, checkpoint.Text] = {
        "spectrim_recipe.yaml": made.recipe.to_yaml(),
        "spectrim_plan.yaml": made.plan.to_yaml(),
    }
    if events is not None:
        extras[EVENTS_FILE] = events
    options = checkpoint.SaveOptions(
        card=lambda: card_for(made.model, made.plan, made.recipe),
        extras=extras,
        overwrite=place.overwrite,
        source=made.model,
        reload=place.reload,
    )
    config = pair.smaller.config.quantization_config
    checkpoint.save_together(pair.smaller, pair.tokenizer, place.output, config, options)
    with checkpoint.warn_of_failure(f"{place.output} is saved, but its report failed"):
        _write_report(made, pair, place, events)


def _write_report(
    made: CompressionResult, pair: Pair, place: OutputSpec, events: str | None
) -> None:
    facts = with_prunings(facts_of(made, pair), events or "")
    if place.page:
        facts = compare(facts, pair, made.recipe)
    with distributed.raise_together():
        if distributed.is_main_process():
            for name, text in report_extras(facts, place.page).items():
                checkpoint.add_text_file(place.output, name, text)
