"""The options that shape a recipe, declared once for every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from spectrim.errors import InputError
from spectrim.pipeline.presets import PRESETS, load_recipe
from spectrim.pipeline.recipe import QuantizationRecipe, Recipe, recipe_from
from spectrim.pipeline.renamed import check_field
from spectrim.runtime.cache import Cache

_RECIPE = "Recipe (each overrides the recipe file or preset)"
_CALIBRATION = "Calibration"

OPTIONS: dict[str, Any] = {
    "recipe": Annotated[str, typer.Option(help=f"Preset ({', '.join(PRESETS)}) or YAML file.")],
    "budget": Annotated[
        float | None,
        typer.Option(help="Fraction of the layers' weights kept.", rich_help_panel=_RECIPE),
    ],
    "latency_budget": Annotated[
        float | None,
        typer.Option(
            help="In place of bytes: share of the layers' time for one token, measured here.",
            rich_help_panel=_RECIPE,
        ),
    ],
    "method": Annotated[
        str | None, typer.Option(help="See `spectrim ls`.", rich_help_panel=_RECIPE)
    ],
    "allocation": Annotated[
        str | None, typer.Option(help="Rank allocation.", rich_help_panel=_RECIPE)
    ],
    "layer": Annotated[str | None, typer.Option(help="Layer kind.", rich_help_panel=_RECIPE)],
    "rank_multiple": Annotated[
        str | None,
        typer.Option(help="Round ranks to it; auto: the device's.", rich_help_panel=_RECIPE),
    ],
    "include": Annotated[
        list[str] | None,
        typer.Option(help="Only layers whose name matches.", rich_help_panel=_RECIPE),
    ],
    "exclude": Annotated[
        list[str] | None,
        typer.Option(help="Not the layers whose name matches.", rich_help_panel=_RECIPE),
    ],
    "refine": Annotated[
        list[str] | None,
        typer.Option(help="Refinements to run after, in order.", rich_help_panel=_RECIPE),
    ],
    "quantize": Annotated[
        str | None,
        typer.Option(
            help="Factors in int8, int4 or nf4; the budget then counts bytes.",
            rich_help_panel=_RECIPE,
        ),
    ],
    "task": Annotated[
        str | None,
        typer.Option(
            help="Prune for it: FILE.jsonl, gsm8k:FILE, math:FILE, arithmetic:train:2000.",
            rich_help_panel=_RECIPE,
        ),
    ],
    "probe": Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Correct the curves by forward passes.",
            rich_help_panel=_RECIPE,
        ),
    ],
    "set": Annotated[
        list[str] | None,
        typer.Option(
            help="Any recipe field, as field=value (method_options.damping=0.01).",
            rich_help_panel=_RECIPE,
        ),
    ],
    "data": Annotated[
        str | None,
        typer.Option(
            help="Text file, .jsonl, .parquet, hf:NAME:SPLIT, or python.",
            rich_help_panel=_CALIBRATION,
        ),
    ],
    "field": Annotated[
        str | None, typer.Option(help="Text field.", rich_help_panel=_CALIBRATION)
    ],
    "sequences": Annotated[
        int | None, typer.Option(help="Sequences to use.", rich_help_panel=_CALIBRATION)
    ],
    "length": Annotated[
        int | None, typer.Option(help="Tokens per sequence.", rich_help_panel=_CALIBRATION)
    ],
    "labels": Annotated[
        str | None, typer.Option(help="data or sampled.", rich_help_panel=_CALIBRATION)
    ],
    "cache": Annotated[
        Path | None,
        typer.Option(help="Where calibrations are kept.", rich_help_panel=_CALIBRATION),
    ],
    "no_cache": Annotated[
        bool,
        typer.Option("--no-cache", help="Keep no calibration.", rich_help_panel=_CALIBRATION),
    ],
}
_DEFAULTS = {"recipe": "default", "no_cache": False}
_CALIBRATION_FIELDS = ("data", "field", "sequences", "length", "labels")
_TOP_FIELDS = ("budget", "method", "allocation", "layer", "rank_multiple", "include", "exclude")


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add all `OPTIONS` to a typer command, which receives them as one dict `given`."""
    own = inspect.signature(command)
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_DEFAULTS.get(name),
            annotation=annotation,
        )
        for name, annotation in OPTIONS.items()
    ]

    def wrapped(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in OPTIONS}
        command(**arguments, given=given)

    hints = inspect.get_annotations(command, eval_str=True)
    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in own.parameters.items()
        if name != "given"
    ]
    signature = own.replace(parameters=[*kept, *added], return_annotation=None)
    for name, value in {
        "__name__": command.__name__,
        "__doc__": command.__doc__,
        "__signature__": signature,
        "__annotations__": {p.name: p.annotation for p in signature.parameters.values()},
    }.items():
        setattr(wrapped, name, value)
    return wrapped


def recipe_of(given: dict[str, Any]) -> Recipe:
    """The recipe file or preset with the command line's values over it. Raises InputError."""
    recipe = load_recipe(given["recipe"])
    values = recipe.to_dict()
    for name in _TOP_FIELDS:
        if given[name] not in (None, []):
            values[name] = given[name]
    if given["method"] not in (None, recipe.method):
        values["method_options"] = {}
    if given["allocation"] not in (None, recipe.allocation):
        values["allocation_options"] = {}
    if given["layer"] not in (None, recipe.layer):
        values["layer_options"] = {}
    for name in _CALIBRATION_FIELDS:
        if given[name] is not None:
            values["calibration"][name] = given[name]
    if given["refine"]:
        values["refinement"] = [{"name": name} for name in given["refine"]]
    if given["task"] is not None:
        values["task"] = (values["task"] or {}) | {"data": given["task"]}
    if given["latency_budget"] is not None:
        values["latency"] = (values["latency"] or {}) | {"budget": given["latency_budget"]}
    if given["probe"] is not None:
        values["probe"] |= {"per_layer": given["probe"], "joint": given["probe"]}
    if given["quantize"] is not None:
        values["quantization"] = (values["quantization"] or {}) | _bits(given["quantize"])
    for assignment in sorted(given["set"] or [], key=_sets_options):
        _assign(values, assignment)
    _fit_ranks(values)
    return recipe_from(values, "options")


def _sets_options(assignment: str) -> bool:
    """A name goes first: it takes away the options of the one that it replaces."""
    return "options" in assignment.partition("=")[0]


def _bits(name: str) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = {
        "int8": {"bits": 8},
        "int4": {"bits": 4},
        "nf4": {"bits": 4, "backend": "nf4", "group_size": 64},
    }
    if name not in known:
        raise InputError(f"--quantize {name}: expected int8, int4 or nf4")
    return known[name]


def _fit_ranks(values: dict[str, Any]) -> None:
    """Ranks that the quantization's kernel reads, where nobody said which."""
    if values["quantization"] and values["rank_multiple"] == 1:
        try:
            values["rank_multiple"] = QuantizationRecipe(**values["quantization"]).multiple
        except (TypeError, ValueError):
            return  # the recipe says what is wrong with it


def _assign(values: dict[str, Any], assignment: str) -> None:
    import yaml

    path, equals, text = assignment.partition("=")
    if not equals:
        raise InputError(f"--set {assignment}: expected field=value")
    check_field(path, f"--set {path}")
    *parents, last = path.split(".")
    place: Any = values
    for name in parents:
        inside = place is not values  # a part that was left out has no fields yet
        if isinstance(place, dict) and (inside or name in place) and place.get(name) is None:
            place[name] = {}
        place = place.get(name) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise InputError(f"--set {path}: a recipe has no such field")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {path}: '{text}' is not a value") from error
    if f"{last}_options" in place and value != place.get(last):
        place[f"{last}_options"] = {}  # they were the other one's
    place[last] = value


def cache_from(given: dict[str, Any]) -> Cache:
    if given["no_cache"]:
        return Cache(None)
    return Cache(given["cache"]) if given["cache"] else Cache.default()
