"""`spectrim export`: a model, or an adapter, that runs without spectrim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spectrim.cli.options import Json, Output, Overwrite, RemoteCode
from spectrim.errors import InputError


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Directory of a compressed model, or one with an adapter.")
    ],
    output: Output,
    dense: Annotated[
        bool, typer.Option("--dense", help="Multiply the factors into dense weights.")
    ] = False,
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Add the code that loads it.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write a graph for ONNX Runtime.")
    ] = False,
    lora: Annotated[
        bool, typer.Option("--lora", help="Write its adapter as a plain LoRA.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of the LoRA (default: as large as no error needs)."),
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Export a compressed model, or an adapter, to run without spectrim."""
    if dense + self_contained + onnx + lora != 1:
        raise InputError("choose one of --dense, --self-contained, --onnx and --lora")
    if rank is not None and not lora:
        raise InputError("--rank is that of a LoRA; add --lora")
    if lora:
        from spectrim.pipeline.export_lora import export_lora

        made = export_lora(checkpoint, output, rank, overwrite, trust_remote_code)
        _report_lora(output, made, json)
        return

    from spectrim import checkpoint as formats
    from spectrim.cli import console

    if dense:
        written = formats.export_dense(checkpoint, output, overwrite, trust_remote_code)
    elif self_contained:
        written = formats.export_self_contained(checkpoint, output, overwrite)
    else:
        written = formats.export_onnx(checkpoint, output, overwrite, trust_remote_code)
    if json:
        console.as_json({"saved": str(written)})
    console.note(f"saved to {written}")


def _report_lora(output: Path, made: Any, json: bool) -> None:
    from spectrim.cli import console

    facts = {"saved": str(output), "rank": made.config.r, "error": made.error}
    if json:
        console.as_json(facts)
    cut = f", relative error {made.error:.3g}" if made.error else ", no error"
    console.note(f"saved to {output}: a LoRA of rank {made.config.r}{cut}")
