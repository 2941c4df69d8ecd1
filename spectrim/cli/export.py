"""`spectrim export`: a model or adapter that runs without spectrim, or one elastic size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from spectrim.cli.options import Json, Output, Overwrite, RemoteCode, Size, TargetLoss
from spectrim.errors import InputError


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Directory of a compressed model or an adapter.")
    ],
    output: Output,
    dense: Annotated[
        bool, typer.Option("--dense", help="Multiply the factors into dense weights.")
    ] = False,
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Write a copy with the code that loads it.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write a graph for ONNX Runtime.")
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Print the commands that make a GGUF file.")
    ] = False,
    lora: Annotated[
        bool, typer.Option("--lora", help="Write the adapter as a plain LoRA.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of the LoRA (default: large enough to be exact)."),
    ] = None,
    budget: Size = None,
    target_loss: TargetLoss = None,
    size: Annotated[
        str | None,
        typer.Option(help="Choose the largest size within these bytes, like 300MiB."),
    ] = None,
    latency_budget: Annotated[
        float | None,
        typer.Option(help="Choose the largest size within this fraction of the dense time."),
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Export a compressed model or an adapter to run without spectrim, or one elastic size."""
    if gguf:
        raise _about_gguf(checkpoint, output)
    if rank is not None and not lora:
        raise InputError("--rank is that of a LoRA; add --lora")
    wishes = {
        "budget": budget,
        "target_loss": target_loss,
        "size": size,
        "latency_budget": latency_budget,
    }
    chosen = {name: value for name, value in wishes.items() if value is not None}
    _check_choice(dense + self_contained + onnx + lora, list(chosen), self_contained or lora)
    place = _Place(checkpoint, output, overwrite, trust_remote_code)
    if lora:
        _export_lora(place, rank, json)
        return
    forms = {"dense": dense, "self_contained": self_contained, "onnx": onnx}
    form = next((name for name, asked in forms.items() if asked), "size")
    _export_form(place, form, chosen, json)


def _about_gguf(checkpoint: Path, output: Path) -> InputError:
    return InputError(
        "llama.cpp writes GGUF files, of dense weights that its own quantizers make small: "
        f"`spectrim export {checkpoint} --dense -o {output}`, then in its clone "
        f"`python convert_hf_to_gguf.py {output} --outfile {output.name}.gguf`"
    )


@dataclass(frozen=True)
class _Place:
    """What is read and written, and how."""

    checkpoint: Path
    output: Path
    overwrite: bool
    trust_remote_code: bool


def _export_form(place: _Place, form: str, chosen: dict[str, Any], json: bool) -> None:
    from spectrim import checkpoint as formats
    from spectrim.cli import console

    fraction = _fraction(place.checkpoint, chosen)
    given, flags = (place.checkpoint, place.output), (place.overwrite, place.trust_remote_code)
    if form == "dense":
        written = formats.export_dense(*given, *flags, fraction)
    elif form == "self_contained":
        written = formats.export_self_contained(*given, place.overwrite)
    elif form == "onnx":
        written = formats.export_onnx(*given, *flags, fraction)
    else:
        written = formats.export_size(*given, {"budget": fraction}, *flags)
    if json:
        console.as_json({"saved": str(written)} | ({"budget": fraction} if chosen else {}))
    console.note(f"saved to {written}" + (f", budget {fraction:.4f}" if chosen else ""))


def _export_lora(place: _Place, rank: int | None, json: bool) -> None:
    from spectrim.cli import console
    from spectrim.pipeline.export_lora import export_lora

    flags = (place.overwrite, place.trust_remote_code)
    made = export_lora(place.checkpoint, place.output, rank, *flags)
    facts = {"saved": str(place.output), "rank": made.config.r, "error": made.error}
    if json:
        console.as_json(facts)
    cut = f", relative error {made.error:.3g}" if made.error else ", no error"
    console.note(f"saved to {place.output}: a LoRA of rank {made.config.r}{cut}")


def _check_choice(forms: int, wishes: list[str], whole: bool) -> None:
    """Raise InputError unless one form, or one size, or a form at a size is asked for.

    whole: the form is of the whole checkpoint.
    """
    options = [f"--{name.replace('_', '-')}" for name in wishes]
    if len(options) > 1:
        raise InputError(f"choose one of {' and '.join(options)}")
    if options and whole:
        raise InputError(
            f"--self-contained or --lora and {options[0]} cannot be combined: write the size "
            "first and export what is written"
        )
    if forms > 1 or not (forms or options):
        raise InputError(
            "choose one of --dense, --self-contained, --onnx and --lora, or a --budget of an "
            "elastic checkpoint"
        )


def _fraction(checkpoint: Path, chosen: dict[str, Any]) -> float | None:
    """Return the budget that was asked for, None for the largest size."""
    from spectrim.checkpoint import find_budget

    if (latency := chosen.get("latency_budget")) is not None:
        from spectrim.pipeline.elastic_size import budget_for_latency

        return budget_for_latency(str(checkpoint), latency)
    return find_budget(checkpoint, chosen) if chosen else None
