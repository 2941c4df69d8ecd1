"""`spectrim train`: train a model from scratch, its weights in a form of choice."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from spectrim.cli import console
from spectrim.cli.options import (
    CacheDirectory,
    Json,
    NoCache,
    Output,
    Overwrite,
    Tracker,
    cache_from,
    with_settings,
)
from spectrim.pipeline.field_errors import checked_settings
from spectrim.pipeline.train_settings import TrainSettings


@with_settings(TrainSettings)
def train(
    context: typer.Context,
    config: Annotated[
        str, typer.Argument(help="Directory or hub name whose config and tokenizer are used.")
    ],
    output: Output,
    settings: dict[str, Any],
    cache: CacheDirectory = None,
    no_cache: NoCache = False,
    track: Tracker = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a model from scratch: dense, or as factors that stay compressed."""
    given = {name: value for name, value in settings.items() if value is not None}
    wanted = checked_settings(TrainSettings, given)

    from spectrim.checkpoint import check_output
    from spectrim.cli.tracking import context_for, start_tracking
    from spectrim.pipeline.train import save_trained
    from spectrim.pipeline.train import train as run

    check_output(output, overwrite)
    log_metrics = start_tracking(context, track, f"train {config}", settings)
    run_context = context_for(cache_from({"cache": cache, "no_cache": no_cache}), log_metrics)
    result = run(config, wanted, run_context)
    save_trained(result, output, overwrite)
    record = result.record
    first, last = record["losses"]
    log_metrics({"loss at the end": last}, None)
    rows = [(record["method"], f"{first:.4f}", f"{last:.4f}", f"{record['parameters']:,}")]
    heads = ("method", "loss, first tenth", "last tenth", "parameters")
    console.as_json(record) if json else console.table("training", heads, rows)
    console.note(f"saved to {output}")
