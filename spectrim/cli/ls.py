"""`spectrim ls`: everything that is chosen by name, and which features combine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from spectrim.cli.options import Json


def ls(
    compatibility: Annotated[
        bool,
        typer.Option("--compatibility", help="List features that do not combine, and why."),
    ] = False,
    json: Json = False,
) -> None:
    """List methods, allocations, layer types and everything else chosen by name."""
    if compatibility:
        _print_compatibility(json)
        return

    from spectrim.cli import console
    from spectrim.pipeline.catalog import list_methods

    rows = list_methods()
    if json:
        console.as_json(rows)
        return
    for kind, entries in rows.items():
        console.definition_list(kind, [(entry["name"], _text(entry)) for entry in entries])


def _text(entry: dict[str, Any]) -> str:
    parts = [entry["summary"]]
    if entry["needs"]:
        parts.append(f"Needs {', '.join(entry['needs'])}.")
    if entry["reference"]:
        parts.append(f"[{entry['reference']}]")
    return " ".join(parts)


def _print_compatibility(json: bool) -> None:
    from spectrim.cli import console
    from spectrim.pipeline import compatibility

    pairs = compatibility.table()
    if json:
        console.as_json([{"one": a, "other": b, "why": why} for a, b, why in pairs])
        return
    console.definition_list(
        "These do not combine; all others do",
        [(f"{one} + {other}", why) for one, other, why in pairs],
    )
