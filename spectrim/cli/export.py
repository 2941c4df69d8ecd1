"""`spectrim export`: a model that runs without spectrim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrim.cli.options import Json, Output, Overwrite, RemoteCode
from spectrim.errors import InputError


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of a compressed model.")],
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
    gguf: Annotated[bool, typer.Option("--gguf", help="Say how a GGUF file is made.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Export a compressed model to run without spectrim."""
    if gguf:
        raise InputError(
            "llama.cpp writes GGUF files, of dense weights that its own quantizers make small: "
            f"`spectrim export {checkpoint} --dense -o {output}`, then in its clone "
            f"`python convert_hf_to_gguf.py {output} --outfile {output.name}.gguf`"
        )
    if dense + self_contained + onnx != 1:
        raise InputError("choose one of --dense, --self-contained and --onnx")

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
