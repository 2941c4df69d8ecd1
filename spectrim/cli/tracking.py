"""`--track NAME`: the figures of a command in trackio, wandb or mlflow too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spectrim import several
from spectrim.cli import show
from spectrim.evaluation import size
from spectrim.planning import Plan
from spectrim.refinement import Progress
from spectrim.trackers import Tell, TrackedRun, telling, timed, untold
from spectrim.workspace import Workspace

Tracker = Annotated[
    str | None,
    typer.Option(
        "--track",
        envvar="SPECTRIM_TRACK",
        help="Keep the figures in trackio, wandb or mlflow as well.",
    ),
]


def told(
    context: typer.Context, tracker: str | None, name: str, settings: Mapping[str, Any]
) -> Tell:
    """Opens a run that ends with the command, as failed if that failed; of several processes
    the first one's."""
    tracker = tracker if several.is_first() else None
    return context.obj.enter_context(telling(tracker, TrackedRun(name, settings)))


def progress_for(workspace: Workspace, tell: Tell) -> Progress:
    if tell is untold:
        return Progress(workspace, show.track)
    return Progress(workspace, timed(show.track, tell), tell=tell)


def final_figures(plan: Plan, output: Path) -> dict[str, float]:
    found = {"kept": plan.kept, "layers/factored": float(len(plan.ranks))}
    found["disk_bytes"] = size.disk_bytes(output)
    if plan.predicted_loss is not None:
        found["predicted_loss"] = plan.predicted_loss
    return found
