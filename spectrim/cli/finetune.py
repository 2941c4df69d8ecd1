"""`spectrim finetune`: train a compressed model on a text or a task, at its size."""

from __future__ import annotations

from typing import Any

import typer

from spectrim.cli import console
from spectrim.cli.options import (
    CacheDirectory,
    Json,
    Model,
    NoCache,
    Output,
    Overwrite,
    RemoteCode,
    Tracker,
    cache_from,
    with_settings,
)
from spectrim.errors import InputError
from spectrim.pipeline.finetune_settings import FinetuneSettings


@with_settings(FinetuneSettings)
def finetune(
    context: typer.Context,
    model: Model,
    output: Output,
    settings: dict[str, Any],
    cache: CacheDirectory = None,
    no_cache: NoCache = False,
    track: Tracker = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Train the factors of a compressed model, or LoRA adapters on them; ranks stay."""
    wanted = _checked(settings)

    from spectrim.checkpoint import SaveOptions, check_output, save_compressed
    from spectrim.cli.tracking import context_for, start_tracking
    from spectrim.evaluation import size
    from spectrim.pipeline.finetune import finetune as run
    from spectrim.pipeline.loaded_model import load_model
    from spectrim.pipeline.replace import cast_for_saving
    from spectrim.report.card import finetuning_card

    check_output(output, overwrite)
    log_metrics = start_tracking(context, track, f"finetune {model}", settings)
    loaded = load_model(model, trust_remote_code)
    run_context = context_for(cache_from({"cache": cache, "no_cache": no_cache}), log_metrics)
    tuned = run(loaded.model, loaded.tokenizer, wanted, run_context)
    tuned = cast_for_saving(tuned, loaded.dtype)
    config: Any = tuned.config.quantization_config
    entry = config.provenance["refinement"][-1]
    options = SaveOptions(
        card=lambda: finetuning_card(model, entry), overwrite=overwrite, source=model
    )
    save_compressed(tuned, loaded.tokenizer, output, config, options)
    ends = {f"loss at the end/{what}": last for what, (_, last) in entry["losses"].items()}
    log_metrics(ends | {"disk_bytes": size.disk_bytes(output)}, None)
    console.as_json(entry) if json else _table(entry["losses"])
    console.note(f"saved to {output}: `import spectrim`, then from_pretrained")


def _checked(settings: dict[str, Any]) -> FinetuneSettings:
    from pydantic import ValidationError

    from spectrim.pipeline.field_errors import explain

    try:
        return FinetuneSettings(**settings)
    except ValidationError as error:
        raise InputError(explain("options", error, FinetuneSettings)) from error


def _table(losses: dict[str, tuple[float, float]]) -> None:
    rows = [(what, f"{first:.4f}", f"{last:.4f}") for what, (first, last) in losses.items()]
    console.table("training loss", ("trained", "first tenth", "last tenth"), rows)
