"""`spectrim recipes`: the presets, and one of them as a file to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrim.cli import console
from spectrim.cli.app import SETTINGS, Command, Subcommands
from spectrim.cli.options import Json, Overwrite
from spectrim.errors import InputError
from spectrim.pipeline.presets import PAPERS, PRESETS, SUMMARIES, unknown_preset

recipes = typer.Typer(
    cls=Subcommands,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
    help="List, show and copy presets.",
)
Name = Annotated[str, typer.Argument(help="Name of a preset (`spectrim recipes list`).")]


@recipes.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        _print_list()


@recipes.command("list", cls=Command)
def list_(json: Json = False) -> None:
    """List the presets and what each does."""
    if json:
        console.as_json({name: recipe.to_dict() for name, recipe in PRESETS.items()})
    else:
        _print_list()


@recipes.command(cls=Command)
def show(name: Name, json: Json = False) -> None:
    """Print a preset as YAML."""
    recipe = PRESETS[_known(name)]
    if json:
        console.as_json(recipe.to_dict())
    else:
        print(recipe.to_yaml(), end="")


@recipes.command(cls=Command)
def copy(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="YAML file (default: NAME.yaml).")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a preset as a YAML file to edit, for --recipe."""
    from spectrim.runtime.files import write_text

    place = output or Path(f"{_known(name)}.yaml")
    if place.exists() and not overwrite:
        raise InputError(f"{place} exists; name another file with -o, or give --overwrite")
    write_text(place, PRESETS[name].to_yaml())
    if json:
        console.as_json({"recipe": str(place)})
    console.note(f"saved to {place}; edit it and use it with --recipe {place}")


def _known(name: str) -> str:
    if name not in PRESETS:
        raise unknown_preset(name)
    return name


def _print_list() -> None:
    own = [(name, text) for name, text in SUMMARIES.items() if name not in PAPERS]
    console.definition_list("spectrim", own)
    console.definition_list("papers, as published", [(n, SUMMARIES[n]) for n in PAPERS])
