"""`spectrim activate`: load compressed models in every program of this environment."""

from __future__ import annotations

from typing import Annotated

import typer

from spectrim.cli.options import Json


def activate(
    remove: Annotated[bool, typer.Option("--remove", help="Undo the activation.")] = False,
    json: Json = False,
) -> None:
    """Let all programs of this environment load compressed models without an import."""
    from spectrim import checkpoint
    from spectrim.cli import console

    through = None if remove else str(checkpoint.activate())
    removed = remove and checkpoint.deactivate()
    if json:
        console.as_json({"active": not remove, "through": through, "removed": removed})
    if through is not None:
        console.note(f"active through {through}")
    else:
        console.note("removed" if removed else "was not active")
