"""`spectrim bench`: recipes side by side at equal bytes, or at equal time."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli import console
from spectrim.cli.compress import check_ways
from spectrim.cli.options import (
    Json,
    Model,
    RemoteCode,
    Tracker,
    cache_from,
    check_text,
    recipe_of,
    with_recipe_options,
)
from spectrim.errors import InputError
from spectrim.pipeline.defaults import EVALUATION_TOKENS

if TYPE_CHECKING:
    from spectrim.data import BlockSettings
    from spectrim.pipeline.benchmark import Bench, BenchRow
    from spectrim.pipeline.loaded_model import LoadedModel
    from spectrim.pipeline.recipe import Recipe

_BUDGETS = (0.8, 0.6, 0.4)
_METHODS = (
    "Presets, METHOD[/ALLOCATION[/LAYER]][+REFINEMENT...], or a YAML file of named recipes, "
    "separated by commas."
)


@with_recipe_options()
def bench(
    context: typer.Context,
    model: Model,
    methods: Annotated[list[str], typer.Option(help=_METHODS)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for the results.")],
    given: dict[str, Any],
    budgets: Annotated[
        str | None, typer.Option(help="Fractions of the weights to keep (default 0.8,0.6,0.4).")
    ] = None,
    latency_budgets: Annotated[
        str | None,
        typer.Option(help="Fractions of the dense layers' time, instead of --budgets."),
    ] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            help="Evaluation text; repeat for several, the calibration's domain first.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Number of tokens to evaluate on, of each text.")
    ] = EVALUATION_TOKENS,
    track: Tracker = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Compare recipes on one model at equal bytes or time, in one table.

    The same command resumes an interrupted table. With more methods or budgets it adds rows.
    """
    wanted, given = _asked(budgets, latency_budgets, given)
    base = recipe_of(given)

    from spectrim.cli.ahead import announce_rows
    from spectrim.cli.tracking import context_for, start_tracking
    from spectrim.pipeline.benchmark import BenchSettings, bench_steps, named_recipes
    from spectrim.pipeline.loaded_model import load_original

    recipes = named_recipes(_split(methods), base)
    _check(model, recipes, wanted, trust_remote_code)
    asked = {name: recipe.to_dict() for name, recipe in recipes.items()}
    log_metrics = start_tracking(context, track, f"bench {model}", asked)
    original = load_original(model, trust_remote_code)
    cache = cache_from(given)
    settings = BenchSettings(
        tuple(evals or ["python:held_out"]),
        _blocks(original, base, tokens),
        original.dtype,
        output / "rows",
        cache,
        context_for(cache, log_metrics).progress,
    )
    rows = [r.with_changes(budget=b) for r in recipes.values() for b in wanted]
    announce_rows(original, rows, tokens * len(settings.texts), cache)
    for result in bench_steps(original.model, original.tokenizer, recipes, wanted, settings):
        _keep(result, output, model, list(recipes))
    for row in result.rows:
        log_metrics(_figures(row), None)
    _show(result, output, model, json)


def _split(texts: list[str]) -> list[str]:
    return [part for text in texts for part in text.split(",") if part.strip()]


def _check(
    model: str, recipes: Mapping[str, Recipe], budgets: list[float], trust_remote_code: bool
) -> None:
    """Raise InputError for a recipe or budget that the table cannot have."""
    from spectrim.pipeline.early_checks import check_early

    for recipe in recipes.values():
        check_ways(recipe)
        check_text(recipe, model)
        check_early(model, recipe, trust_remote_code)
    for recipe in recipes.values():
        for budget in budgets:
            recipe.with_changes(budget=budget)


def _blocks(original: LoadedModel, base: Recipe, tokens: int) -> BlockSettings:
    """Return how evaluation texts are cut: as those of the calibration."""
    from spectrim.data import BlockSettings
    from spectrim.pipeline.calibration_defaults import default_length

    given = base.calibration
    length = given.length or default_length(original.model)
    return BlockSettings(length=length, max_tokens=tokens, keep_tail=True, rows=given.rows)


def _asked(
    budgets: str | None, of_time: str | None, given: dict[str, Any]
) -> tuple[list[float], dict[str, Any]]:
    """Return the budgets, and the recipe options with a latency budget if requested."""
    single = given["latency_budget"]
    if of_time is None and single is None:
        return _budgets("--budgets", budgets, given["budget"]), given
    if budgets is not None or given["budget"] is not None:
        raise InputError("rows are at equal bytes or at equal time: give budgets of one kind")
    wanted = _budgets("--latency-budgets", of_time, single)
    return wanted, given | {"latency_budget": wanted[0]}


def _budgets(option: str, text: str | None, single: float | None) -> list[float]:
    if text is None:
        return list(_BUDGETS) if single is None else [single]
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{option} {text}: expected fractions with commas between them, like 0.8,0.6"
        ) from error


def _keep(result: Bench, output: Path, model: str, names: list[str]) -> None:
    """Write the table so far, and tell on standard error how far it is."""
    from spectrim.runtime import distributed

    distributed.run_on_main(partial(_write, result, output, model, names))
    place = f"{len(result.rows)} of {result.wanted} rows"
    console.note(
        f"{place}: {result.made} made, {len(result.rows) - result.made} found finished"
    )


def _write(result: Bench, output: Path, model: str, names: list[str]) -> None:
    from spectrim.checkpoint.card import shown_name
    from spectrim.report.bench_plot import bench_svg
    from spectrim.report.bench_table import markdown, values
    from spectrim.runtime.files import write_text

    title = f"{shown_name(model)}: {', '.join(names)}"
    write_text(output / "bench.md", markdown(result, title))
    write_text(output / "bench.json", json_text.dumps(values(result, model), indent=1) + "\n")
    if result.rows:
        plot = bench_svg(result.rows, f"{shown_name(model)}: loss increase")
        write_text(output / "bench.svg", plot)


def _figures(row: BenchRow) -> dict[str, float]:
    """Return the figures for a tracker, under the row's name and budget."""
    found = {f"perplexity/{text}": value for text, value in row.perplexity.items()}
    found |= {f"loss increase/{text}": value for text, value in row.loss_increase.items()}
    found |= {} if row.file_bytes is None else {"bytes": float(row.file_bytes)}
    return {f"{row.name} at {row.budget:g}/{what}": value for what, value in found.items()}


def _show(result: Bench, output: Path, model: str, json: bool) -> None:
    from spectrim.report.bench_table import summary, values

    if json:
        console.as_json(values(result, model))
    else:
        console.table("perplexity by text, loss increase in nats per token", *summary(result))
    for row in result.rows:
        if row.error is not None:
            console.note(f"warning: {row.name} at {row.budget:g}: {row.error}")
    console.note(f"table, figures and plot in {output}: bench.md, bench.json, bench.svg")
