"""`spectrim finetune`: train a compressed model on a text or a task, at its size."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spectrim import checkpoint
from spectrim.checkpoint import SpectrimConfig
from spectrim.cli import console
from spectrim.cli.commands import Json, Model, Output, Overwrite, RemoteCode, _load, app
from spectrim.cli.options import cache_from
from spectrim.cli.tracking import Tracker, progress_for, start_tracking
from spectrim.evaluation import size
from spectrim.pipeline.finetune import FinetuneSettings
from spectrim.pipeline.finetune import finetune as run_finetune
from spectrim.pipeline.replace import cast_for_saving
from spectrim.report.card import finetuning_card


@app.command()
def finetune(
    context: typer.Context,
    model: Model,
    output: Output,
    data: Annotated[
        str | None, typer.Option(help="Text: file, .jsonl, .parquet, hf:NAME:SPLIT, python.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Examples; the answers' loss counts: FILE.jsonl.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="Text field.")] = None,
    lora: Annotated[
        int | None, typer.Option(help="Rank of PEFT adapters, merged in the end. Else factors.")
    ] = None,
    quantize_base: Annotated[
        str | None, typer.Option(help="int4 or nf4: fixed layers, adapters stay beside them.")
    ] = None,
    sequences: Annotated[int | None, typer.Option(help="Rows to train on.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of the longest row.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = 3,
    steps: Annotated[int | None, typer.Option(help="In place of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 32,
    learning_rate: Annotated[
        float | None, typer.Option(help="5e-4 for factors, 2e-3 for adapters.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the rows' order and the adapters.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Where a run is kept.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep none.")] = False,
    track: Tracker = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Train the factors of a compressed model, or LoRA adapters on them; ranks stay."""
    settings = FinetuneSettings(
        data=data,
        task=task,
        field=field,
        sequences=sequences,
        length=length,
        lora=lora,
        quantize_base=quantize_base,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    checkpoint.check_output(output, overwrite)
    log_metrics = start_tracking(context, track, f"finetune {model}", asdict(settings))
    loaded, tokenizer, stored = _load(model, trust_remote_code)
    kept = cache_from({"cache": cache, "no_cache": no_cache})
    tuned = run_finetune(loaded, tokenizer, settings, progress_for(kept, log_metrics))
    tuned = cast_for_saving(tuned, stored)
    config: SpectrimConfig = tuned.config.quantization_config
    entry = config.provenance["refinement"][-1]
    options = checkpoint.SaveOptions(
        card=lambda: finetuning_card(model, entry), overwrite=overwrite, source=model
    )
    checkpoint.save_compressed(tuned, tokenizer, output, config, options)
    ends = {f"loss at the end/{what}": last for what, (_, last) in entry["losses"].items()}
    log_metrics(ends | {"disk_bytes": size.disk_bytes(output)}, None)
    console.as_json(entry) if json else _table(entry["losses"])
    console.note(f"saved to {output}: `import spectrim`, then from_pretrained")


def _table(losses: dict[str, tuple[float, float]]) -> None:
    rows = [(what, f"{first:.4f}", f"{last:.4f}") for what, (first, last) in losses.items()]
    console.table("training loss", ("trained", "first tenth", "last tenth"), rows)
