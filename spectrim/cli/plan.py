"""`spectrim plan`: the size/quality curve before anything is compressed, and a plan to edit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli.options import (
    DryRun,
    Fsdp,
    Json,
    MergeAdapter,
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
    from spectrim.pipeline.loaded_model import LoadedModel
    from spectrim.pipeline.recipe import Recipe
    from spectrim.planning import Plan, SizeLossPoint


PlanOutput = Annotated[
    Path | None, typer.Option("-o", "--output", help="Plan file (.yaml or .json).")
]
Plot = Annotated[
    Path | None, typer.Option(help="SVG file of the curve (default: beside the plan of -o).")
]
CheckSpeed = Annotated[
    bool,
    typer.Option(
        "--check-speed/--no-check-speed",
        help="Time the planned layers and warn about those slower than dense.",
    ),
]


@dataclass(frozen=True)
class _Places:
    """Where the plan and the curve go: files, where they are named, and text or JSON."""

    output: Path | None
    plot: Path | None
    json: bool


@with_recipe_options()
def plan(
    model: Model,
    given: dict[str, Any],
    output: PlanOutput = None,
    target_loss: TargetLoss = None,
    plot: Plot = None,
    check_speed: CheckSpeed = True,
    fsdp: Fsdp = False,
    dry_run: DryRun = False,
    merge_adapter: MergeAdapter = False,
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
    from spectrim.pipeline.latency_table import slow_layers
    from spectrim.pipeline.plan import factorize
    from spectrim.planning import size_curve
    from spectrim.runtime.context import RunContext

    options = CompressOptions(target_loss=target_loss)
    recipe = prepare_recipe(recipe, options)
    original = _open(model, recipe, fsdp, (merge_adapter, trust_remote_code))
    recipe = original.with_save_dtype(recipe)
    cache = cache_from(given)
    steps = announce(original, recipe, cache, always=dry_run)
    if dry_run:
        return
    context = RunContext(cache, steps, fsdp=fsdp)
    decomposition = factorize(original.model, original.tokenizer, recipe, context)
    chosen = choose_plan(decomposition, recipe, options, context)
    for text in slow_layers(chosen, recipe, context) if check_speed else ():
        console.note(f"warning: {text}")
    points = size_curve(decomposition, recipe.planning)
    _show(original, chosen, points, _Places(output, plot, json))


def _open(model: str, recipe: Recipe, fsdp: bool, ways: tuple[bool, bool]) -> LoadedModel:
    """Load the model after all checks that need no weights.

    ways: whether an adapter is merged, and whether code of the model is run.
    """
    from spectrim.cli.ahead import base_of, note_kind
    from spectrim.cli.compress import check_ways
    from spectrim.pipeline.compress import check_kind
    from spectrim.pipeline.early_checks import check_early
    from spectrim.pipeline.loaded_model import load_original

    merge_adapter, trust_remote_code = ways
    if fsdp:
        check_ways(recipe, fsdp=True)
    check_text(recipe, model)
    fields = check_early(base_of(model, merge_adapter), recipe, trust_remote_code, True)
    original = load_original(model, trust_remote_code, True, merge_adapter, fsdp)
    check_kind(original.model, recipe)
    note_kind(original.model, fields)
    return original


def _show(
    original: LoadedModel, chosen: Plan, points: Sequence[SizeLossPoint], places: _Places
) -> None:
    """Write the plan and the curve, and print both."""
    from spectrim.checkpoint.card import shown_name
    from spectrim.cli import console
    from spectrim.models.kind import kind_of
    from spectrim.report.curve_plot import curve_svg

    units = kind_of(original.model).units
    plot = _place_of_plot(places.plot, places.output, original.name)
    title = f"{shown_name(original.name)}: {chosen.method}, {chosen.layer}"
    draw = partial(curve_svg, points, title, chosen.kept, units)
    _write(chosen, places.output, plot, draw)
    if places.json:
        console.as_json({"curve": [vars(p) for p in points], "plan": chosen.to_dict()})
        return
    console.curve_table(points, units)
    console.plan_table(chosen)
    _note_places(places.output, plot)


def _note_places(output: Path | None, plot: Path | None) -> None:
    from spectrim.cli import console

    if plot:
        console.note(f"curve in {plot}" + (f", plan in {output}" if output else ""))
    else:
        console.note("give -o FILE to keep the plan, --plot FILE to draw the curve")


def _write(
    chosen: Plan, output: Path | None, plot: Path | None, draw: Callable[[], str]
) -> None:
    from spectrim.planning import save_plan
    from spectrim.runtime import distributed
    from spectrim.runtime.files import write_text

    def write() -> None:
        if plot:
            write_text(plot, draw())
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
