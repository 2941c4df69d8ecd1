"""Save a compressed model first, and then everything that is stored beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spectrim import checkpoint
from spectrim.checkpoint.card import CARD_FILE
from spectrim.checkpoint.save_sharded import save_streamed
from spectrim.evaluation import size
from spectrim.pipeline.compress import CompressionResult
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.report.card import card_for
from spectrim.report.collect import plan_facts
from spectrim.report.facts import EVENTS_FILE, Part, ReportData
from spectrim.report.load import compare, facts_of, report_extras
from spectrim.report.pruning_figure import with_prunings
from spectrim.runtime import distributed


@dataclass(frozen=True)
class OutputSpec:
    """The output directory and its extras.

    Attributes:
        overwrite: whether an earlier result may be replaced.
        page: whether to write an HTML page.
        reload: whether to load the result again to compare it, where memory allows.
    """

    output: Path
    overwrite: bool = False
    page: bool = True
    reload: bool = True


def write_result(
    original: LoadedModel, result: CompressionResult, place: OutputSpec
) -> ReportData:
    """Save the model with its card, recipe and plan, then facts and page; return the facts.

    A report that fails is only a warning: the result is already saved. There is none of a model
    that was compressed part by part.

    Raises:
        InputError: the output cannot be written.
        CheckpointError: the written model differs from the one in memory.
    """
    extras: dict[str, checkpoint.Text] = {
        "spectrim_recipe.yaml": result.recipe.to_yaml(),
        "spectrim_plan.yaml": result.plan.to_yaml(),
    }
    if result.prune_steps is not None:
        extras[EVENTS_FILE] = result.prune_steps
    options = checkpoint.SaveOptions(
        card=lambda: card_for(original.name, result.plan, result.recipe),
        extras=extras,
        overwrite=place.overwrite,
        source=original.name or None,
        reload=place.reload,
    )
    if original.streamed is not None and result.parts is not None:
        save_streamed(result.model, result.parts, original.tokenizer, place.output, options)
        sizes = [size.disk_bytes(at) for at in (original.streamed.directory, place.output)]
        facts = plan_facts(original.name, result.plan, result.recipe)
        return replace(facts, parts=[Part("files", *sizes)])
    config = result.model.config.quantization_config
    checkpoint.save_together(result.model, original.tokenizer, place.output, config, options)
    with checkpoint.warn_of_failure(f"{place.output} is saved, but its report failed"):
        return _write_report(original, result, place)
    return plan_facts(original.name, result.plan, result.recipe)


def _write_report(
    original: LoadedModel, result: CompressionResult, place: OutputSpec
) -> ReportData:
    facts = with_prunings(facts_of(original, result), result.prune_steps or "")
    if place.page:
        facts = compare(facts, original, result.model, result.recipe)
    distributed.run_on_main(lambda: _add_texts(original, result, facts, place))
    return facts


def _add_texts(
    original: LoadedModel, result: CompressionResult, facts: ReportData, place: OutputSpec
) -> None:
    card = card_for(original.name, result.plan, result.recipe, facts)
    for name, text in ({CARD_FILE: card} | report_extras(facts, place.page)).items():
        checkpoint.add_text_file(place.output, name, text)
