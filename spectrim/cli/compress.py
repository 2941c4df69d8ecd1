"""`spectrim compress`: calibrate, decompose, plan, replace, refine, save."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli.options import (
    DryRun,
    Fsdp,
    Json,
    Model,
    Output,
    Overwrite,
    RemoteCode,
    Tracker,
    cache_from,
    check_text,
    recipe_of,
    with_recipe_options,
)
from spectrim.errors import InputError

if TYPE_CHECKING:
    from spectrim.pipeline.compress import CompressOptions
    from spectrim.pipeline.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """The options of the command that are not part of the recipe."""

    model: str
    output: Path
    options: CompressOptions
    overwrite: bool
    page: bool
    json: bool
    trust_remote_code: bool = False
    reload: bool = True


@with_recipe_options
def compress(
    context: typer.Context,
    model: Model,
    output: Output,
    given: dict[str, Any],
    plan: Annotated[
        Path | None, typer.Option(help="Use the ranks of a plan file (`spectrim plan -o`).")
    ] = None,
    target_loss: Annotated[
        float | None,
        typer.Option(help="Smallest model within this predicted loss, nats per token."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write an HTML page.")
    ] = True,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory limit, like 6GiB; larger models are streamed from disk.",
        ),
    ] = None,
    fsdp: Fsdp = False,
    track: Tracker = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Compress a model and save it with a card, its plan and a report."""
    if given["budget"] is not None and target_loss is not None:
        raise InputError("choose one of --budget and --target-loss")
    if given["budget"] is not None and given["elastic"] is not None:
        raise InputError("choose one of --budget and --elastic")
    recipe = recipe_of(given)

    from spectrim.checkpoint import check_output
    from spectrim.cli.ahead import announce
    from spectrim.cli.tracking import context_for, final_metrics, start_tracking
    from spectrim.pipeline.compress import CompressOptions, prepare_recipe
    from spectrim.pipeline.compress import compress as run
    from spectrim.pipeline.early_checks import check_early, check_room
    from spectrim.pipeline.loaded_model import load_original
    from spectrim.pipeline.quantize_factors import check_quantization
    from spectrim.planning import load_plan

    check_ways(recipe, memory, plan, fsdp)
    options = CompressOptions(load_plan(plan) if plan else None, target_loss)
    recipe = prepare_recipe(recipe, options)
    check_quantization(recipe)
    check_text(recipe, model)
    check_early(model, recipe, trust_remote_code)
    check_output(output, overwrite)
    if target_loss is None:
        check_room(model, output, recipe)
    log_metrics = start_tracking(context, track, f"compress {model}", recipe.to_dict())
    cache = cache_from(given)
    run_context = context_for(cache, log_metrics)
    request = Request(
        model, output, options, overwrite, report, json, trust_remote_code, memory is None
    )
    if memory is not None:
        from spectrim.cli.streaming import within_memory

        if (fitted := within_memory(request, recipe, memory, run_context, dry_run)) is None:
            return
        recipe = fitted
    original = load_original(model, trust_remote_code, mapped=fsdp)
    steps = announce(original, recipe, cache, always=dry_run)
    if dry_run:
        return
    run_context = replace(context_for(cache, log_metrics, steps), fsdp=fsdp)
    options = CompressOptions(options.plan, target_loss, original.dtype)
    result = run(original.model, original.tokenizer, recipe, run_context, options)
    _save(request, original, result)
    log_metrics(final_metrics(result.plan, output), None)


def check_ways(
    recipe: Recipe,
    memory: str | None = None,
    plan: Path | None = None,
    fsdp: bool = False,
) -> None:
    """Raise InputError for a recipe that cannot be run as asked for."""
    from spectrim.pipeline import compatibility
    from spectrim.runtime import distributed

    several = distributed.num_processes() > 1
    ways = {
        compatibility.FSDP: fsdp,
        compatibility.STREAMING: memory is not None,
        compatibility.FOLLOWED_PLAN: plan is not None,
        compatibility.PROCESSES: several,
        compatibility.ONE_PROCESS: not several,
    }
    compatibility.check(recipe, *(way for way, asked in ways.items() if asked))


def _save(request: Request, original: Any, result: Any) -> None:
    from spectrim.cli.console import note, print_result
    from spectrim.report.facts import PAGE_FILE
    from spectrim.report.summary import outcome, summary
    from spectrim.report.write import OutputSpec, write_result

    place = OutputSpec(request.output, request.overwrite, request.page, request.reload)
    facts = write_result(original, result, place)
    print_result(result.plan, outcome(facts), request.json)
    note(f"saved to {request.output}: `import spectrim`, then from_pretrained")
    if (elastic := result.recipe.elastic) is not None:
        _note_sizes(request, elastic.smallest, elastic.largest)
    if request.page and (request.output / PAGE_FILE).is_file():
        note(f"report in {request.output / PAGE_FILE}")
    print_answer(request, summary(facts))


def _note_sizes(request: Request, smallest: float, largest: float) -> None:
    from spectrim.checkpoint import elastic_sizes
    from spectrim.cli.console import note

    sizes = elastic_sizes(request.output)
    note(
        f"sizes {smallest:g} to {largest:g} by from_pretrained(..., spectrim_budget=...); the "
        f"file holds {sizes.stored / sizes.dense_weights:.2f} of the layers' dense weights"
    )


def print_answer(request: Request, text: str) -> None:
    """Print what came out, as the last lines of the run, and the command that measures it."""
    from spectrim.cli.console import note, result_line

    if not request.json:
        result_line(text)
    note(
        f"next: spectrim evaluate {request.output} --original {request.model} --data YOUR_TEXT"
    )
