"""`spectrim plan`: the size/quality curve before anything is compressed, and a plan to edit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli.options import (
    DryRun,
    Json,
    Model,
    RemoteCode,
    TargetLoss,
    cache_from,
    check_text,
    recipe_of,
    with_recipe_options,
)
from spectrim.errors import InputError

if TYPE_CHECKING:
    from spectrim.planning import Plan
    from spectrim.planning.planner import SizeCurve


@with_recipe_options
def plan(
    model: Model,
    given: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Plan file (.yaml or .json).")
    ] = None,
    target_loss: TargetLoss = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="SVG file of the curve (default beside the plan of -o)."),
    ] = None,
    check_speed: Annotated[
        bool,
        typer.Option(
            "--check-speed/--no-check-speed",
            help="Time the planned layers here; warn of those slower than dense.",
        ),
    ] = True,
    dry_run: DryRun = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Show the size/quality curve before compressing, and write a plan to edit."""
    if given["budget"] is not None and target_loss is not None:
        raise InputError("choose one of --budget and --target-loss")
    recipe = recipe_of(given)

    from spectrim.cli import console
    from spectrim.cli.ahead import announce
    from spectrim.pipeline.compress import CompressOptions, choose_plan, prepare_recipe
    from spectrim.pipeline.early_checks import check_early
    from spectrim.pipeline.latency_table import slow_layers
    from spectrim.pipeline.loaded_model import load_original
    from spectrim.pipeline.plan import factorize
    from spectrim.planning import size_curve
    from spectrim.runtime.context import RunContext

    options = CompressOptions(target_loss=target_loss)
    recipe = prepare_recipe(recipe, options)
    check_text(recipe, model)
    check_early(model, recipe, trust_remote_code)
    original = load_original(model, trust_remote_code)
    recipe = original.with_save_dtype(recipe)
    cache = cache_from(given)
    steps = announce(original, recipe, cache, always=dry_run)
    if dry_run:
        return
    context = RunContext(cache, steps)
    decomposition = factorize(original.model, original.tokenizer, recipe, context)
    points = size_curve(decomposition, recipe.planning)
    chosen = choose_plan(decomposition, recipe, options, context)
    for text in slow_layers(chosen, recipe, context) if check_speed else ():
        console.note(f"warning: {text}")
    plot = _place_of_plot(plot, output, model)
    _write(chosen, output, points, plot, model)
    _print(chosen, output, points, plot, json)


def _print(
    chosen: Plan, output: Path | None, points: SizeCurve, plot: Path | None, json: bool
) -> None:
    from spectrim.cli import console

    if json:
        console.as_json({"curve": [vars(p) for p in points], "plan": chosen.to_dict()})
        return
    console.curve_table(points)
    console.plan_table(chosen)
    if plot:
        console.note(f"curve in {plot}" + (f", plan in {output}" if output else ""))
    else:
        console.note("give -o FILE to keep the plan, --plot FILE to draw the curve")


def _write(
    chosen: Plan,
    output: Path | None,
    points: SizeCurve,
    plot: Path | None,
    model: str,
) -> None:
    from spectrim.checkpoint.card import shown_name
    from spectrim.planning import save_plan
    from spectrim.report.curve_plot import curve_svg
    from spectrim.runtime import distributed
    from spectrim.runtime.files import write_text

    title = f"{shown_name(model)}: {chosen.method}, {chosen.layer}"

    def write() -> None:
        if plot:
            write_text(plot, curve_svg(points, title, chosen.kept))
        if output:
            save_plan(chosen, output)

    distributed.run_on_main(write)


def _place_of_plot(plot: Path | None, output: Path | None, model: str) -> Path | None:
    """Return where to draw: --plot, else beside the plan, but never over another's file."""
    if plot is not None or output is None:
        return plot
    beside = output.with_suffix(".svg")
    if beside.exists() and not _shows(beside, model):
        warnings.warn(
            f"{beside} is no curve of {model}, so it stays; name another file with --plot",
            stacklevel=2,
        )
        return None
    return beside


def _shows(file: Path, model: str) -> bool:
    from html import escape

    from spectrim.checkpoint.card import shown_name

    start = file.read_text(encoding="utf-8", errors="replace")[:2000]
    return f'aria-label="{escape(shown_name(model))}: ' in start
