"""`spectrim bench`: recipes side by side at equal bytes, or at equal time."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from spectrim.cli import console
from spectrim.cli.commands import Json, Model, RemoteCode, _load_original, app, check_processes
from spectrim.cli.options import cache_from, recipe_of, with_recipe_options
from spectrim.cli.tracking import Tracker, progress_for, start_tracking
from spectrim.data import BlockSettings
from spectrim.errors import InputError
from spectrim.pipeline.benchmark import (
    BUDGETS,
    MOST_TOKENS,
    Bench,
    BenchRow,
    BenchSettings,
    bench_steps,
    named_recipes,
)
from spectrim.pipeline.calibrate import default_length
from spectrim.report.bench_plot import bench_svg
from spectrim.report.bench_table import markdown, summary, values
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache
from spectrim.runtime.files import write_text

_METHODS = escape(
    "METHOD[/ALLOCATION[/LAYER]][+REFINEMENT...], a preset, or a YAML file of recipes by name; "
    "several with commas or by repeating the option."
)


@app.command()
@with_recipe_options
def bench(
    context: typer.Context,
    model: Model,
    methods: Annotated[list[str], typer.Option(help=_METHODS)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the results.")],
    given: dict[str, Any],
    budgets: Annotated[
        str | None, typer.Option(help="Kept fractions, with commas. Default 0.8,0.6,0.4.")
    ] = None,
    latency_budgets: Annotated[
        str | None,
        typer.Option(help="In place of bytes: shares of the dense layers' time, with commas."),
    ] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option("--eval", help="Text to judge on: the data's own domain first, others."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of each text to use.")] = MOST_TOKENS,
    track: Tracker = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Several recipes on one model at equal bytes or time, with one calibration, in one table.

    Started again with the same output it goes on where it stopped, and with more methods or
    budgets makes the rows that are missing.
    """
    wanted, given = _asked(budgets, latency_budgets, given)
    base = recipe_of(given)
    specs = [spec for text in methods for spec in text.split(",") if spec.strip()]
    recipes = named_recipes(specs, base)
    for recipe in recipes.values():
        check_processes(recipe)
    for recipe in recipes.values():
        for budget in wanted:
            recipe.with_changes(budget=budget)
    asked = {name: recipe.to_dict() for name, recipe in recipes.items()}
    log_metrics = start_tracking(context, track, f"bench {model}", asked)
    original, tokenizer, stored = _load_original(model, trust_remote_code)
    length = base.calibration.length or default_length(original)
    settings = BenchSettings(
        texts=tuple(evals or ["python:held_out"]),
        blocks=BlockSettings(length=length, max_tokens=tokens, keep_tail=True),
        dtype=stored,
        rows=output / "rows",
        cache=cache_from(given),
        track=progress_for(Cache(None), log_metrics).progress,
    )
    title = f"{model}: {', '.join(recipes)}"
    for result in bench_steps(original, tokenizer, recipes, wanted, settings):
        with distributed.raise_together():
            if distributed.is_main_process():
                _write(result, output, model, title)
        _tell(result)
    for row in result.rows:
        log_metrics(_figures(row), None)
    _show(result, output, model, json)


def _asked(
    budgets: str | None, of_time: str | None, given: dict[str, Any]
) -> tuple[list[float], dict[str, Any]]:
    """Budgets, and the recipe options, of which those make one of time where that is asked."""
    single = given["latency_budget"]
    if of_time is None and single is None:
        return _budgets("--budgets", budgets, given["budget"]), given
    if budgets is not None or given["budget"] is not None:
        raise InputError("rows are at equal bytes or at equal time: give budgets of one kind")
    wanted = _budgets("--latency-budgets", of_time, single)
    return wanted, given | {"latency_budget": wanted[0]}


def _budgets(option: str, text: str | None, single: float | None) -> list[float]:
    if text is None:
        return list(BUDGETS) if single is None else [single]
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{option} {text}: expected fractions with commas between them, like 0.8,0.6"
        ) from error


def _write(result: Bench, output: Path, model: str, title: str) -> None:
    write_text(output / "bench.md", markdown(result, title))
    write_text(output / "bench.json", json_text.dumps(values(result, model), indent=1) + "\n")
    write_text(output / "bench.svg", bench_svg(result.rows, f"{model}: loss increase"))


def _tell(result: Bench) -> None:
    """A line on standard error for the row just made, or for those found finished."""
    place = f"{len(result.rows)} of {result.wanted} rows"
    console.note(
        f"{place}: {result.made} made, {len(result.rows) - result.made} found finished"
    )


def _figures(row: BenchRow) -> dict[str, float]:
    """For a tracker, under the row's name and budget."""
    found = {f"perplexity/{text}": value for text, value in row.perplexity.items()}
    found |= {f"loss increase/{text}": value for text, value in row.loss_increase.items()}
    found |= {} if row.file_bytes is None else {"bytes": float(row.file_bytes)}
    return {f"{row.name} at {row.budget:g}/{what}": value for what, value in found.items()}


def _show(result: Bench, output: Path, model: str, json: bool) -> None:
    if json:
        console.as_json(values(result, model))
    else:
        console.table("perplexity by text, loss increase in nats per token", *summary(result))
    for row in result.rows:
        if row.error is not None:
            console.note(f"warning: {row.name} at {row.budget:g}: {row.error}")
    console.note(f"table, figures and plot in {output}: bench.md, bench.json, bench.svg")
