"""`--track NAME`: log the metrics of a command to trackio, wandb or mlflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from spectrim.cli.progress import StageProgress, track
from spectrim.evaluation import size
from spectrim.planning import Plan
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import MetricLogger, RunContext, null_logger
from spectrim.runtime.tracking import TrackedRun, open_tracker, with_stage_times


def start_tracking(
    context: typer.Context, tracker: str | None, name: str, settings: Mapping[str, Any]
) -> MetricLogger:
    """Open a run that ends with the command, as failed if the command fails.

    Only the main process opens one.
    """
    tracker = tracker if distributed.is_main_process() else None
    return context.obj.enter_context(open_tracker(tracker, TrackedRun(name, settings)))


def context_for(
    cache: Cache, log_metrics: MetricLogger, progress: StageProgress = track
) -> RunContext:
    if log_metrics is null_logger:
        return RunContext(cache, progress)
    return RunContext(cache, with_stage_times(progress, log_metrics), log_metrics)


def final_metrics(plan: Plan, output: Path) -> dict[str, float]:
    found = {"kept": plan.kept, "layers/factored": float(len(plan.ranks))}
    found["disk_bytes"] = size.disk_bytes(output)
    if plan.predicted_loss is not None:
        found["predicted_loss"] = plan.predicted_loss
    return found
