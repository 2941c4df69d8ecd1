"""The commands. Each parses, calls verbs of the library, and prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers.utils import logging

from spectrim import checkpoint as checkpoint_module
from spectrim.cli import console
from spectrim.cli.app import Commands
from spectrim.cli.logging import log_command
from spectrim.cli.making import CompressArgs, LoadedModel, choose_plan, make, with_save_dtype
from spectrim.cli.options import cache_from, recipe_of, with_recipe_options
from spectrim.cli.streaming import within_memory
from spectrim.cli.threads import leave_busy_cores
from spectrim.cli.torchrun import check_shared
from spectrim.cli.tracking import Tracker, final_figures, progress_for, start_tracking
from spectrim.data import BlockSettings
from spectrim.errors import InputError
from spectrim.evaluation import HarnessSettings, evaluate_harness, size
from spectrim.pipeline.calibrate import default_length
from spectrim.pipeline.catalog import list_methods
from spectrim.pipeline.evaluate import evaluate as run_evaluate
from spectrim.pipeline.evaluate import evaluate_documents, evaluate_task
from spectrim.pipeline.latency_table import slow_layers
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.recipe import Recipe, TaskRecipe
from spectrim.planning import load_plan, save_plan, size_curve
from spectrim.refinement import RunContext
from spectrim.report.curve_plot import curve_svg
from spectrim.report.facts import PAGE_FILE
from spectrim.report.load import Pair
from spectrim.report.write import OutputSpec, write_result
from spectrim.runtime import distributed
from spectrim.runtime.files import write_text
from spectrim.version import __version__

app = typer.Typer(
    cls=Commands,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a language model smaller by low-rank decomposition guided by the loss.",
)
Model = Annotated[str, typer.Argument(help="Directory, hub name, 'reference' or 'arithmetic'.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Directory to write.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an earlier result.")]
RemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the model.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Stay below, like 6GiB; models that do not fit are streamed."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Versions, losses, seconds and memory too.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Results, warnings and errors only.")
    ] = False,
) -> None:
    check_shared(context.invoked_subcommand)
    if verbose and quiet:
        raise InputError("choose one of --verbose and --quiet")
    console.set_level(verbose, quiet)
    logging.disable_progress_bar()
    leave_busy_cores()
    context.obj.enter_context(log_command())


def _load(name: str, trust_remote_code: bool) -> tuple[Any, Any, torch.dtype]:
    """Model in float32, tokenizer, and the dtype its checkpoint is stored in."""
    model, tokenizer = checkpoint_module.load(
        name, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    if tokenizer is None:
        raise InputError(f"{name} has no tokenizer; put its files beside the model")
    return model, tokenizer, checkpoint_module.stored_dtype(name) or torch.float32


def _load_original(name: str, trust_remote_code: bool) -> tuple[Any, Any, torch.dtype]:
    """Return what `_load` does. Raise ModelError for a model that is already compressed."""
    checkpoint_module.check_dense(name)
    return _load(name, trust_remote_code)


def check_processes(recipe: Recipe, memory: str | None = None) -> None:
    """Raises InputError for what several processes do not share."""
    if distributed.num_processes() == 1:
        return
    if memory is not None:
        raise InputError("--memory is for one process: start without torchrun, or leave it out")
    if recipe.pruning is not None:
        raise InputError("a recipe that selects bases runs in one process, without torchrun")


@app.command()
@with_recipe_options
def compress(
    context: typer.Context,
    model: Model,
    output: Output,
    given: dict[str, Any],
    plan: Annotated[Path | None, typer.Option(help="Plan file to follow.")] = None,
    target_loss: Annotated[
        float | None, typer.Option(help="Smallest model within this loss, nats per token.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write an HTML page about the result.")] = True,
    memory: Memory = None,
    track: Tracker = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Calibrate, decompose, plan, replace the layers, and save."""
    recipe = recipe_of(given)
    if recipe.pruning is not None and (plan or target_loss is not None):
        raise InputError("a recipe that selects bases takes a --budget, no plan or target loss")
    check_processes(recipe, memory)
    followed = load_plan(plan) if plan else None
    wanted = CompressArgs(
        model, output, followed, target_loss, overwrite, json, report, trust_remote_code
    )
    recipe = wanted.checked(recipe)
    log_metrics = start_tracking(context, track, f"compress {model}", recipe.to_dict())
    progress = progress_for(cache_from(given), log_metrics)
    if memory is not None:
        if (sized := within_memory(wanted, recipe, memory, progress)) is None:
            return
        recipe = sized
    loaded = LoadedModel(*_load_original(model, trust_remote_code))
    result = make(loaded, wanted, recipe, progress)
    pair = Pair(loaded.model, result.model, loaded.tokenizer, loaded.stored)
    place = OutputSpec(output, overwrite, report, reload=memory is None)
    write_result(result.made, pair, place, result.prune_steps)
    log_metrics(final_figures(result.made.plan, output), None)
    console.print_result(result.made.plan, json)
    console.note(f"saved to {output}: `import spectrim`, then from_pretrained")
    if report and (output / PAGE_FILE).is_file():
        console.note(f"report in {output / PAGE_FILE}")


@app.command()
@with_recipe_options
def plan(
    model: Model,
    given: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Plan file (.yaml or .json).")
    ] = None,
    target_loss: Annotated[
        float | None, typer.Option(help="Smallest model within this loss, nats per token.")
    ] = None,
    plot: Annotated[Path, typer.Option(help="SVG file of the curve.")] = Path("plan.svg"),
    check_speed: Annotated[
        bool, typer.Option(help="Time the plan's layers here; warn of those slower than dense.")
    ] = True,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """The size/quality curve before anything is compressed, and a plan to edit."""
    recipe = recipe_of(given)
    original, tokenizer, stored = _load_original(model, trust_remote_code)
    recipe = with_save_dtype(recipe, stored)
    progress = RunContext(cache_from(given), console.track)
    decomposition = factorize(original, tokenizer, recipe, progress)
    points = size_curve(decomposition, recipe)
    chosen = choose_plan(decomposition, recipe, target_loss, progress)
    if check_speed:
        for text in slow_layers(chosen, recipe, progress):
            console.note(f"warning: {text}")
    with distributed.raise_together():
        if distributed.is_main_process():
            title = f"{model}: {recipe.method}, {recipe.layer}"
            write_text(plot, curve_svg(points, title, chosen.kept))
            if output:
                save_plan(chosen, output)
    if json:
        console.as_json({"curve": [vars(p) for p in points], "plan": chosen.to_dict()})
        return
    console.curve_table(points)
    console.plan_table(chosen)
    console.note(f"curve in {plot}" + (f", plan in {output}" if output else ""))


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Dense or compressed models.")],
    data: Annotated[
        str | None,
        typer.Option(help="Text to evaluate on (python:held_out unless a task is given)."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Examples to answer: FILE.jsonl, arithmetic:test:500.")
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="Model to measure the divergence from.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to use.")] = 20_000,
    length: Annotated[int | None, typer.Option(help="Tokens per chunk.")] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness, with commas (extra 'eval')."),
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option(help="Directory of task files (YAML) of your own.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each of the tasks.")] = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Perplexity on chunks and per document, divergence, task accuracy, sizes."""
    wanted = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
    harness = HarnessSettings(task_path, shots, limit)
    reference = _load(original, trust_remote_code)[0] if original else None
    results = {}
    for name in models:
        model, tokenizer, _ = _load(name, trust_remote_code)
        settings = BlockSettings(
            length=length or default_length(model), max_tokens=tokens, keep_tail=True
        )
        results[name] = _disk_bytes(name)
        if task:
            results[name] |= evaluate_task(model, tokenizer, TaskRecipe(data=task))
        if wanted:
            results[name] |= distributed.run_on_main(
                partial(evaluate_harness, model, tokenizer, wanted, harness)
            )
        if data or not (task or wanted):
            text = data or "python:held_out"
            results[name] |= run_evaluate(model, tokenizer, text, settings, reference)
            results[name] |= evaluate_documents(model, tokenizer, text, settings)
    if json:
        console.as_json(results)
    else:
        console.figures_table(results)


def _disk_bytes(name: str) -> dict[str, float]:
    place = checkpoint_module.resolve(name)
    return {"disk_bytes": size.disk_bytes(place)} if isinstance(place, Path) else {}


@app.command()
def ls(json: Json = False) -> None:
    """Methods, allocations, layers, statistics and evaluators: what each needs, its source."""
    rows = list_methods()
    if json:
        console.as_json(rows)
        return
    for kind, entries in rows.items():
        console.table(
            kind,
            ("name", "what", "needs", "reference"),
            [(e["name"], e["summary"], ", ".join(e["needs"]), e["reference"]) for e in entries],
        )


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of a compressed model.")],
    output: Output,
    dense: Annotated[bool, typer.Option("--dense", help="Multiply the factors back.")] = False,
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Add code, to load without spectrim.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="A graph for ONNX Runtime.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """A model that runs without spectrim: dense, with its own code, or as an ONNX graph."""
    ways: dict[Any, bool] = {
        partial(checkpoint_module.export_dense, trust_remote_code=trust_remote_code): dense,
        checkpoint_module.export_self_contained: self_contained,
        partial(checkpoint_module.export_onnx, trust_remote_code=trust_remote_code): onnx,
    }
    if sum(ways.values()) != 1:
        raise InputError("choose one of --dense, --self-contained and --onnx")
    [write] = [way for way, chosen in ways.items() if chosen]
    written = write(checkpoint, output, overwrite)
    if json:
        console.as_json({"saved": str(written)})
    console.note(f"saved to {written}")


@app.command()
def activate(
    remove: Annotated[bool, typer.Option("--remove", help="Undo it.")] = False,
    json: Json = False,
) -> None:
    """Let every program of this environment load compressed models without an import."""
    through = None if remove else str(checkpoint_module.activate())
    removed = remove and checkpoint_module.deactivate()
    if json:
        console.as_json({"active": not remove, "through": through, "removed": removed})
    if through is not None:
        console.note(f"active through {through}")
    else:
        console.note("removed" if removed else "was not active")
