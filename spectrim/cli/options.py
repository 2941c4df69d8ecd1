"""The options shared by several commands; those of a recipe are made from its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from spectrim.cli.shorthands import QUANTIZERS, SHORTHANDS
from spectrim.errors import InputError, did_you_mean
from spectrim.pipeline.budgets import for_all_sizes
from spectrim.pipeline.presets import load_recipe
from spectrim.pipeline.recipe import CalibrationRecipe, QuantizationRecipe, Recipe, recipe_from
from spectrim.pipeline.renamed import check_field
from spectrim.registry import NoOptions

if TYPE_CHECKING:
    from spectrim.runtime.cache import Cache

Model = Annotated[
    str,
    typer.Argument(
        help="Directory, GGUF file or hub name; bundled: 'reference', 'arithmetic'."
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Directory to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
MergeAdapter = Annotated[
    bool,
    typer.Option("--merge-adapter", help="MODEL is a PEFT adapter: merge it into its base."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the stages ahead with time and memory, and stop."),
]
Fsdp = Annotated[
    bool,
    typer.Option(
        "--fsdp", help="Under torchrun: calibrate with weights sharded over the processes."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tracker = Annotated[
    str | None,
    typer.Option(
        "--track",
        envvar="SPECTRIM_TRACK",
        help="Also log metrics to trackio, wandb or mlflow.",
    ),
]
Size = Annotated[
    float | None,
    typer.Option("--budget", help="Size of an elastic checkpoint (default: its largest)."),
]
CacheDirectory = Annotated[
    Path | None, typer.Option("--cache", help="Directory for statistics and snapshots.")
]
TargetLoss = Annotated[
    float | None,
    typer.Option(help="Choose the smallest model within this predicted loss (nats per token)."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Store no statistics or snapshots.")]

_RECIPE = "Recipe (overrides the preset or file)"
_CALIBRATION = "Calibration"
_TOP_FIELDS = ("budget", "method", "allocation", "layer", "rank_multiple", "include", "exclude")
_CALIBRATION_FIELDS = ("data", "field", "sequences", "length", "rows", "sampling", "labels")


def _fields(cls: Any) -> Any:
    """Return a pydantic dataclass's fields by name."""
    return cls.__pydantic_fields__


def _field_option(path: str, panel: str) -> Any:
    """Return an option for a field of a recipe; if absent, it is None and changes nothing."""
    owner: Any = Recipe
    *parents, name = path.split(".")
    for parent in parents:
        owner = get_type_hints(owner)[parent]
    return _option_for(owner, name, get_type_hints(owner)[name] | None, panel)


def _option_for(cls: Any, name: str, hint: Any, panel: str | None) -> Any:
    """Return an option with the type, choices and description of a field of `cls`."""
    choices = [
        c for part in (hint, *get_args(hint)) if _is_choice(part) for c in get_args(part)
    ]
    option = typer.Option(
        metavar="|".join(choices)
        if choices and all(isinstance(c, str) for c in choices)
        else None,
        help=_fields(cls)[name].description,
        rich_help_panel=panel,
    )
    return Annotated[_option_type(hint), option]


def _is_choice(hint: Any) -> bool:
    return get_origin(hint) is Literal and get_args(hint) != ("auto",)


def _option_type(hint: Any) -> Any:
    """Return the type that typer parses: numbers as such, tuples as lists, all else as text."""
    parts = set(get_args(hint)) or {hint}
    optional = type(None) in parts
    if any(get_origin(part) is tuple for part in parts):
        found: Any = list[str]
    elif len(parts - {type(None)}) == 1 and (kinds := parts & {int, float}):
        found = kinds.pop()
    else:
        found = str
    return found | None if optional else found


def _recipe_options() -> dict[str, Any]:
    options: dict[str, Any] = {
        "recipe": Annotated[str, typer.Option(help="Preset (`spectrim recipes`) or YAML file.")]
    }
    shorthands = {name: _recipe_option(*given) for name, given in SHORTHANDS.items()}
    fields = {name: _field_option(name, _RECIPE) for name in _TOP_FIELDS}
    options |= {"budget": fields["budget"], "ratio": shorthands["ratio"]} | fields | shorthands
    options |= {
        name: _field_option(f"calibration.{name}", _CALIBRATION) for name in _CALIBRATION_FIELDS
    }
    description = _fields(CalibrationRecipe)["data"].description
    options["data"] = Annotated[
        list[str] | None,
        typer.Option(help=f"{description} Repeat for several.", rich_help_panel=_CALIBRATION),
    ]
    return options | {"cache": CacheDirectory, "no_cache": NoCache}


def _recipe_option(kind: Any, metavar: str | None, text: str, *names: str) -> Any:
    option = typer.Option(*names, metavar=metavar, help=text, rich_help_panel=_RECIPE)
    return Annotated[kind, option]


OPTIONS = _recipe_options()
"""By parameter name, the options that shape a recipe."""
_DEFAULTS = {"recipe": "default", "no_cache": False}


def with_recipe_options(*refused: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `OPTIONS` to a command, which receives them as one dict `given`.

    refused: options that the command answers with an error; its help leaves them out.
    """
    options = OPTIONS | {name: _hidden(OPTIONS[name]) for name in refused}
    return lambda command: _with_options(command, "given", options, _DEFAULTS, _with_budget)


def _hidden(annotation: Any) -> Any:
    option = copy(annotation.__metadata__[0])
    option.hidden = True
    return Annotated[annotation.__origin__, option]


def _with_budget(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the budget that `--ratio` leaves. Raises InputError."""
    others = {name: value for name, value in given.items() if name != "ratio"}
    if (ratio := given["ratio"]) is None:
        return others
    if given["budget"] is not None:
        raise InputError("choose one of --budget and --ratio")
    if not 0 <= ratio < 1:
        raise InputError(
            f"--ratio {ratio:g}: expected the fraction that is removed, at least 0 and below 1"
        )
    return others | {"budget": round(1 - ratio, 12)}


def with_settings(cls: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for each field of a dataclass; the command receives a dict `settings`."""
    hints = get_type_hints(cls)
    defaults = {name: field.default for name, field in _fields(cls).items()}
    options = {name: _option_for(cls, name, hints[name], None) for name in defaults}
    return lambda command: _with_options(command, "settings", options, defaults)


def _with_options(
    command: Callable[..., None],
    gathered: str,
    options: dict[str, Any],
    defaults: dict[str, Any],
    read: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Callable[..., None]:
    """Return the command with more options, which it receives `read` as the dict `gathered`."""
    own = inspect.signature(command)
    hints = inspect.get_annotations(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        parameter.replace(kind=keyword, annotation=hints[name])
        for name, parameter in own.parameters.items()
        if name != gathered
    ]
    parameters += [
        inspect.Parameter(name, keyword, default=defaults.get(name), annotation=annotation)
        for name, annotation in options.items()
    ]

    def wrapped(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in options}
        command(**arguments, **{gathered: read(given)})

    signature = own.replace(parameters=parameters, return_annotation=None)
    for name, value in {
        "__name__": command.__name__,
        "__doc__": command.__doc__,
        "__signature__": signature,
        "__annotations__": {p.name: p.annotation for p in parameters},
    }.items():
        setattr(wrapped, name, value)
    return wrapped


def recipe_of(given: dict[str, Any]) -> Recipe:
    """Return the preset or file with the command line's values over it. Raises InputError."""
    recipe = load_recipe(given["recipe"])
    values = recipe.to_dict()
    for name in _TOP_FIELDS:
        if given[name] not in (None, []):
            values[name] = given[name]
    for name in ("method", "allocation", "layer"):
        if given[name] not in (None, getattr(recipe, name)):
            values[f"{name}_options"] = {}
    for name in _CALIBRATION_FIELDS:
        if given[name] not in (None, []):
            values["calibration"][name] = given[name]
    if given["data"]:
        from spectrim.data.loading import join_specs

        values["calibration"]["data"] = join_specs(given["data"])
    if given["refine"]:
        values["refinement"] = [{"name": name} for name in given["refine"]]
    _set_training(values["refinement"], given["optimizer"], given["learning_rate"])
    if given["task"] is not None:
        values["task"] = (values["task"] or {}) | {"data": given["task"]}
    if given["latency_budget"] is not None:
        values["latency"] = (values["latency"] or {}) | {"budget": given["latency_budget"]}
    if given["experts"] is not None:
        values["experts"] = _experts(values["experts"] or {}, given["experts"])
    if given["probe"] is not None:
        values["probe"] |= {"per_layer": given["probe"], "joint": given["probe"]}
    if given["quantize"] is not None:
        values["quantization"] = (values["quantization"] or {}) | _bits(given["quantize"])
    if given["elastic"] is not None:
        values |= for_all_sizes(given, values)
    for assignment in sorted(given["set"] or [], key=_sets_options):
        _assign(values, assignment)
    _fit_ranks(values)
    return recipe_from(values, "options")


def _set_training(
    refinements: list[dict[str, Any]], optimizer: str | None, rate: float | None
) -> None:
    """Set both in the options of the refinements that have them. Raises InputError for none."""
    for name, value in (("optimizer", optimizer), ("learning_rate", rate)):
        if value is None:
            continue
        from spectrim.refinement import REFINEMENTS

        modules = (REFINEMENTS.get(each["name"]) for each in refinements)
        chosen = [
            each
            for each, module in zip(refinements, modules, strict=True)
            if name in getattr(module, "Options", NoOptions).__dataclass_fields__
        ]
        if not chosen:
            option = f"--{name.replace('_', '-')} {value}"
            raise InputError(
                f"{option}: no refinement of this recipe has one; add --refine "
                "block_distillation or --refine distillation"
            )
        for each in chosen:
            before = dict(each.get("options", {}))
            if name == "optimizer" and before.get(name) != value:
                before.pop("optimizer_options", None)
            each["options"] = before | {name: value}


def check_text(recipe: Recipe, model: str) -> None:
    """Raise InputError where no text is named for a model that does not come with us."""
    from spectrim.checkpoint.load import is_bundled, resolve
    from spectrim.pipeline.early_checks import check_text as check

    if not is_bundled(model):
        resolve(model)  # a model that is not there is the first thing to say
    check(recipe, is_bundled(model))


def _sets_options(assignment: str) -> bool:
    """Return whether an assignment sets options; names go first, since they clear options."""
    return "options" in assignment.partition("=")[0]


def _experts(values: dict[str, Any], order: str) -> dict[str, Any]:
    """Return an `experts` field with another order, whose options are its own."""
    own: dict[str, Any] = {} if order == values.get("order") else {"order_options": {}}
    return values | {"order": order} | own


def _bits(name: str) -> dict[str, Any]:
    if name not in QUANTIZERS:
        raise InputError(
            f"--quantize {name}: expected {', '.join(QUANTIZERS)}"
            f"{did_you_mean(name, QUANTIZERS)}"
        )
    return QUANTIZERS[name]


def _fit_ranks(values: dict[str, Any]) -> None:
    """Choose ranks that the quantizer's kernel supports, unless ranks are set."""
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
    """Return the cache by --cache and --no-cache."""
    from spectrim.runtime.cache import Cache

    if given["no_cache"]:
        return Cache(None, share=True)
    return Cache(given["cache"] or Cache.default().root, share=True)
