"""`spectrim compress`: calibrate, decompose, plan, replace, refine, save."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli.options import (
    DryRun,
    Json,
    Model,
    Output,
    Overwrite,
    RemoteCode,
    TargetLoss,
    Tracker,
    cache_from,
    check_text,
    recipe_of,
    with_recipe_options,
)
from spectrim.errors import InputError

if TYPE_CHECKING:
    from spectrim.cli.progress import StageProgress
    from spectrim.pipeline.compress import CompressionResult, CompressOptions
    from spectrim.pipeline.loaded_model import LoadedModel
    from spectrim.pipeline.recipe import Recipe
    from spectrim.report.write import OutputSpec
    from spectrim.runtime.cache import Cache


@dataclass(frozen=True)
class Request:
    """The options of the command that are not part of the recipe."""

    model: str
    place: OutputSpec
    options: CompressOptions
    json: bool
    trust_remote_code: bool = False
    memory: int | None = None


@with_recipe_options
def compress(
    context: typer.Context,
    model: Model,
    output: Output,
    given: dict[str, Any],
    plan: Annotated[
        Path | None, typer.Option(help="Use the ranks of a plan file (`spectrim plan -o`).")
    ] = None,
    target_loss: TargetLoss = None,
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
    track: Tracker = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Compress a model and save it with a card, its plan and a report."""
    _check_one_goal(given, target_loss)
    recipe = recipe_of(given)

    from spectrim.cli.tracking import context_for, final_metrics, start_tracking
    from spectrim.pipeline.compress import CompressOptions
    from spectrim.pipeline.compress import compress as run
    from spectrim.pipeline.memory_plan import bytes_of
    from spectrim.planning import load_plan
    from spectrim.report.write import OutputSpec
    from spectrim.runtime.cache import lasting

    check_ways(recipe, memory, plan)
    limit = None if memory is None else bytes_of(memory)
    options = CompressOptions(load_plan(plan) if plan else None, target_loss)
    place = OutputSpec(output, overwrite, report, reload=limit is None)
    request = Request(model, place, options, json, trust_remote_code, limit)
    recipe = _checked(request, recipe)
    log_metrics = start_tracking(context, track, f"compress {model}", recipe.to_dict())
    original, recipe = _open(request, recipe)
    cache = cache_from(given)
    steps = _announced(original, recipe, cache, dry_run)
    if dry_run:
        return
    with ExitStack() as stack:
        if original.streamed is not None:
            cache = stack.enter_context(lasting(cache))
        run_context = context_for(cache, log_metrics, steps)
        options = replace(options, dtype=original.dtype)
        result = run(original.source, original.tokenizer, recipe, run_context, options)
        _save(request, original, result)
    log_metrics(final_metrics(result.plan, output), None)


def _check_one_goal(given: dict[str, Any], target_loss: float | None) -> None:
    others = {"--target-loss": target_loss, "--elastic": given["elastic"]}
    for option, value in others.items():
        if given["budget"] is not None and value is not None:
            raise InputError(f"choose one of --budget and {option}")


def check_ways(recipe: Recipe, memory: str | None = None, plan: Path | None = None) -> None:
    """Raise InputError for a recipe that cannot be run as asked for."""
    from spectrim.pipeline import compatibility
    from spectrim.runtime import distributed

    ways = {
        compatibility.STREAMING: memory is not None,
        compatibility.FOLLOWED_PLAN: plan is not None,
        compatibility.PROCESSES: distributed.num_processes() > 1,
    }
    compatibility.check(recipe, *(way for way, asked in ways.items() if asked))


def _checked(request: Request, recipe: Recipe) -> Recipe:
    """Return the recipe as it is run, after all checks that take no long work."""
    from spectrim.checkpoint import check_output
    from spectrim.pipeline.compress import prepare_recipe
    from spectrim.pipeline.early_checks import check_early, check_room
    from spectrim.pipeline.quantize_factors import check_quantization

    recipe = prepare_recipe(recipe, request.options)
    check_quantization(recipe)
    check_text(recipe, request.model)
    check_early(request.model, recipe, request.trust_remote_code)
    check_output(request.place.output, request.place.overwrite)
    if request.options.target_loss is None:
        check_room(request.model, request.place.output, recipe)
    return recipe


def _announced(
    original: LoadedModel, recipe: Recipe, cache: Cache, dry_run: bool
) -> StageProgress:
    from spectrim.cli.ahead import announce
    from spectrim.cli.progress import StageProgress

    if original.streamed is not None:  # the choice of the memory plan was told
        return StageProgress()
    return announce(original, recipe, cache, always=dry_run)


def _open(request: Request, recipe: Recipe) -> tuple[LoadedModel, Recipe]:
    """Load the model, or leave it on disk where it does not fit, with the recipe that fits."""
    from spectrim.checkpoint.save_sharded import open_streamed
    from spectrim.cli.console import note
    from spectrim.pipeline.loaded_model import load_original, streamed_original
    from spectrim.pipeline.memory_plan import plan_memory
    from spectrim.runtime.memory import return_large_blocks

    if request.memory is None:
        return load_original(request.model, request.trust_remote_code), recipe
    opened = open_streamed(request.model, trust_remote_code=request.trust_remote_code)
    original = streamed_original(request.model, opened)
    return_large_blocks()
    chosen = plan_memory(opened, recipe, request.memory)
    note(str(chosen))
    if chosen.sizes is not None:
        opened.streamed.sizes = chosen.sizes
        return original, chosen.fitted(recipe)
    sized = replace(recipe.calibration, tokens_per_batch=chosen.tokens_per_batch)
    loaded = load_original(request.model, request.trust_remote_code)
    return loaded, recipe.with_changes(calibration=sized)


def _save(request: Request, original: LoadedModel, result: CompressionResult) -> None:
    from spectrim.cli.console import note, print_result
    from spectrim.report.facts import PAGE_FILE
    from spectrim.report.summary import outcome, summary
    from spectrim.report.write import write_result

    output = request.place.output
    facts = write_result(original, result, request.place)
    print_result(result.plan, outcome(facts), request.json)
    if original.streamed is not None:
        _note_peak(request)
    note(f"saved to {output}: `import spectrim`, then from_pretrained")
    if (elastic := result.recipe.elastic) is not None:
        _note_sizes(request, elastic.smallest, elastic.largest)
    if request.place.page and (output / PAGE_FILE).is_file():
        note(f"report in {output / PAGE_FILE}")
    _print_answer(request, summary(facts))


def _note_peak(request: Request) -> None:
    from spectrim.cli.console import note
    from spectrim.runtime.memory import peak_bytes

    peak, limit = peak_bytes() / 2**20, (request.memory or 0) / 2**20
    note(f"peak memory of this process {peak:,.0f} MiB, limit {limit:,.0f}")


def _note_sizes(request: Request, smallest: float, largest: float) -> None:
    from spectrim.checkpoint import elastic_sizes
    from spectrim.cli.console import note

    sizes = elastic_sizes(request.place.output)
    note(
        f"sizes {smallest:g} to {largest:g} by from_pretrained(..., spectrim_budget=...); the "
        f"file holds {sizes.stored / sizes.dense_weights:.2f} of the layers' dense weights"
    )


def _print_answer(request: Request, text: str) -> None:
    """Print what came out, as the last lines of the run, and the command that measures it."""
    from spectrim.cli.console import note, result_line

    if not request.json:
        result_line(text)
    note(
        f"next: spectrim evaluate {request.place.output} --original {request.model} "
        "--data YOUR_TEXT"
    )
