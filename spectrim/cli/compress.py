"""`spectrim compress`: calibrate, decompose, plan, replace, refine, save."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli.options import (
    DryRun,
    Fsdp,
    Json,
    MergeAdapter,
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

PlanFile = Annotated[
    Path | None, typer.Option(help="Use the ranks of a plan file (`spectrim plan -o`).")
]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write an HTML report.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory limit, like 6GiB; a larger model is streamed from disk."
    ),
]


@dataclass(frozen=True)
class Request:
    """The options of the command that are not part of the recipe."""

    model: str
    place: OutputSpec
    options: CompressOptions
    json: bool
    trust_remote_code: bool = False
    memory: int | None = None
    merge_adapter: bool = False
    fsdp: bool = False


@with_recipe_options()
def compress(
    context: typer.Context,
    model: Model,
    output: Output,
    given: dict[str, Any],
    plan: PlanFile = None,
    target_loss: TargetLoss = None,
    report: Report = True,
    memory: MemoryLimit = None,
    fsdp: Fsdp = False,
    track: Tracker = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    merge_adapter: MergeAdapter = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Compress a model and save it with a model card, the plan and a report."""
    _check_one_goal(given, target_loss)
    recipe = recipe_of(given)

    from spectrim.cli.ahead import note_kind
    from spectrim.cli.tracking import context_for, final_metrics, start_tracking
    from spectrim.pipeline.compress import CompressOptions
    from spectrim.pipeline.compress import compress as run
    from spectrim.pipeline.memory_plan import bytes_of
    from spectrim.planning import load_plan
    from spectrim.report.write import OutputSpec
    from spectrim.runtime.cache import lasting

    check_ways(recipe, memory, plan, fsdp)
    limit = None if memory is None else bytes_of(memory)
    options = CompressOptions(load_plan(plan) if plan else None, target_loss)
    place = OutputSpec(output, overwrite, report, reload=limit is None)
    ways = json, trust_remote_code, limit, merge_adapter, fsdp
    request = Request(model, place, options, *ways)
    recipe, fields = _checked(request, recipe)
    log_metrics = start_tracking(context, track, f"compress {model}", recipe.to_dict())
    original, recipe = _open(request, recipe)
    cache = cache_from(given)
    note_kind(original.model, fields)
    steps = _announced(original, recipe, cache, dry_run)
    if dry_run:
        return
    with ExitStack() as stack:
        if original.streamed is not None:
            cache = stack.enter_context(lasting(cache))
        run_context = replace(context_for(cache, log_metrics, steps), fsdp=fsdp)
        options = replace(options, dtype=original.dtype)
        result = run(original.source, original.tokenizer, recipe, run_context, options=options)
        _save(request, original, result)
    log_metrics(final_metrics(result.plan, output), None)


def _check_one_goal(given: dict[str, Any], target_loss: float | None) -> None:
    others = {"--target-loss": target_loss, "--elastic": given["elastic"]}
    for option, value in others.items():
        if given["budget"] is not None and value is not None:
            raise InputError(f"choose one of --budget and {option}")


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


def _checked(request: Request, recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe as it is run, after all checks that take no long work.

    With it come the fields of the examples of a model whose loss needs labels.
    """
    from spectrim.checkpoint import check_causal, check_output
    from spectrim.cli.ahead import base_of
    from spectrim.pipeline.compress import prepare_recipe
    from spectrim.pipeline.early_checks import check_early, check_room
    from spectrim.pipeline.quantize_factors import check_quantization

    recipe = prepare_recipe(recipe, request.options)
    check_quantization(recipe)
    check_text(recipe, request.model)
    in_parts = request.memory is not None
    if in_parts and request.merge_adapter:
        raise InputError(
            "--merge-adapter and --memory cannot be combined: an adapter is merged in memory; "
            "leave out --memory, or merge first with peft"
        )
    base = base_of(request.model, request.merge_adapter)
    fields = check_early(base, recipe, request.trust_remote_code, any_kind=True)
    if in_parts:
        check_causal(base, trust_remote_code=request.trust_remote_code)
    check_output(request.place.output, request.place.overwrite)
    if request.options.target_loss is None:
        check_room(base, request.place.output, recipe)
    return recipe, fields


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
    from spectrim.pipeline.compress import check_kind
    from spectrim.pipeline.loaded_model import load_original, streamed_original
    from spectrim.pipeline.memory_plan import plan_memory
    from spectrim.runtime.memory import return_large_blocks

    if request.memory is None:
        ways = request.trust_remote_code, True, request.merge_adapter, request.fsdp
        loaded = load_original(request.model, *ways)
        check_kind(loaded.model, recipe)
        return loaded, recipe
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
    note(f"saved to {output}; load it with `import spectrim` and from_pretrained")
    if (elastic := result.recipe.elastic) is not None:
        _note_sizes(request, elastic.smallest, elastic.largest)
    if request.place.page and (output / PAGE_FILE).is_file():
        note(f"report in {output / PAGE_FILE}")
    _print_answer(request, summary(facts), "EXAMPLES" if facts.of_kind.labeled else "TEXT")


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


def _print_answer(request: Request, text: str, data: str = "TEXT") -> None:
    """Print what came out, as the last lines of the run, and the command that measures it.

    data: what the command is to be given.
    """
    from spectrim.cli.console import note, result_line

    if not request.json:
        result_line(text)
    models = f"{request.place.output} --original {request.model}"
    note(f"next: spectrim evaluate {models} --data YOUR_{data}")
