"""`spectrim finetune`: train a model on a text or a task, a compressed one at its size."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
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
from spectrim.pipeline.field_errors import checked_settings
from spectrim.pipeline.finetune_settings import FinetuneSettings

ADAPTER = "adapter"
"""The directory in an output that holds the adapter by itself."""


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
    """Train a compressed model's factors, or an adapter on any model; ranks stay."""
    wanted = checked_settings(FinetuneSettings, settings)

    from spectrim.checkpoint import (
        SaveOptions,
        SpectrimConfig,
        check_output,
        save_compressed,
        save_dense,
    )
    from spectrim.cli.tracking import context_for, start_tracking
    from spectrim.evaluation import size
    from spectrim.pipeline.finetune import finetune_and_record
    from spectrim.pipeline.loaded_model import load_model
    from spectrim.pipeline.replace import cast_for_saving
    from spectrim.report.card import finetuning_card

    check_output(output, overwrite)
    log_metrics = start_tracking(context, track, f"finetune {model}", settings)
    loaded = load_model(model, trust_remote_code)
    run_context = context_for(cache_from({"cache": cache, "no_cache": no_cache}), log_metrics)
    with TemporaryDirectory(prefix="spectrim-") as place:
        adapter = Path(place) / ADAPTER
        entry = finetune_and_record(
            loaded.model,
            loaded.tokenizer,
            wanted,
            run_context,
            adapter_directory=adapter,
        )
        tuned = cast_for_saving(loaded.model, loaded.dtype)
        options = SaveOptions(
            card=lambda: finetuning_card(model, entry),
            overwrite=overwrite,
            source=model,
            directories={ADAPTER: adapter} if adapter.is_dir() else {},
        )
        config: Any = getattr(tuned.config, "quantization_config", None)
        if isinstance(config, SpectrimConfig):
            save_compressed(tuned, loaded.tokenizer, output, config, options)
        else:
            save_dense(tuned, loaded.tokenizer, output, {"finetuned": entry}, options)
    ends = {f"loss at the end/{what}": last for what, (_, last) in entry["losses"].items()}
    log_metrics(ends | {"disk_bytes": size.disk_bytes(output)}, None)
    console.as_json(entry) if json else _table(entry["losses"])
    loading = "" if config is None else "`import spectrim` and "
    console.note(f"saved to {output}; load it with {loading}from_pretrained")


def _table(losses: dict[str, tuple[float, float]]) -> None:
    rows = [(what, f"{first:.4f}", f"{last:.4f}") for what, (first, last) in losses.items()]
    console.table("training loss", ("trained", "first tenth", "last tenth"), rows)
