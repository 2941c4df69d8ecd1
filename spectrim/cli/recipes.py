"""`spectrim recipes`: the presets, and one of them as a file to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrim.cli import console
from spectrim.cli.commands import Json, Overwrite, app
from spectrim.errors import InputError, UnknownNameError
from spectrim.pipeline.presets import PRESETS
from spectrim.runtime.files import write_text

recipes = typer.Typer(no_args_is_help=True, help="Presets, to look at and to start from.")
app.add_typer(recipes, name="recipes")


@recipes.command("list")
def list_(json: Json = False) -> None:
    """The presets and what each of them is made of."""
    if json:
        console.as_json({name: recipe.to_dict() for name, recipe in PRESETS.items()})
        return
    rows = [
        (
            name,
            f"{recipe.method}, {'pruning' if recipe.pruning else recipe.allocation}",
            recipe.layer,
            f"{recipe.budget:g}",
            f"{recipe.calibration.sequences}",
            ", ".join(step.name for step in recipe.refinement) or "-",
        )
        for name, recipe in PRESETS.items()
    ]
    head = ("name", "method, ranks", "layer", "budget", "sequences", "refinement")
    console.table("recipes", head, rows)


@recipes.command()
def copy(
    name: Annotated[str, typer.Argument(help="One of `spectrim recipes list`.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="YAML file; default NAME.yaml.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a preset as a YAML file that `--recipe` reads."""
    if name not in PRESETS:
        raise UnknownNameError("recipe", name, PRESETS)
    place = output or Path(f"{name}.yaml")
    if place.exists() and not overwrite:
        raise InputError(f"{place} exists; name another file with -o, or give --overwrite")
    write_text(place, PRESETS[name].to_yaml())
    if json:
        console.as_json({"recipe": str(place)})
    console.note(f"{place}: edit it, then --recipe {place}")
