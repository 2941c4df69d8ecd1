"""`spectrim bench-speed`: seconds and bytes of a model, dense against compressed."""

from __future__ import annotations

import copy
import json as json_text
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from spectrim import hub, speed
from spectrim.cli import show
from spectrim.cli.commands import Json, RemoteCode, app
from spectrim.errors import InputError
from spectrim.report import speed_table
from spectrim.storage import write_text
from spectrim.surgery.rewrite import factored_layers

_DTYPES = ("float32", "bfloat16", "float16")


@app.command()
def bench_speed(
    model: Annotated[
        str | None, typer.Argument(help="Compressed model; or give a --shape.")
    ] = None,
    original: Annotated[str | None, typer.Option(help="Dense model to compare with.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help=f"Random weights: {', '.join(speed.SHAPES)}, or a config.json."),
    ] = None,
    keep: Annotated[float, typer.Option(help="Of a shape's weights, in the factors.")] = 0.5,
    layer: Annotated[str, typer.Option(help="Of a shape: lowrank or pivoted.")] = "lowrank",
    rank_multiple: Annotated[int, typer.Option(help="Of a shape: rounds ranks.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda; by default a GPU if there is one.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=f"{', '.join(_DTYPES)}.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the processor.")] = None,
    batches: Annotated[str, typer.Option(help="Rows at once, with commas.")] = "1,4",
    lengths: Annotated[str, typer.Option(help="Tokens of a row, with commas.")] = "128,512",
    rounds: Annotated[int, typer.Option(help="Repetitions of each measurement.")] = 9,
    steps: Annotated[int, typer.Option(help="Tokens of a timed decode.")] = 8,
    blocks: Annotated[
        int | None, typer.Option(help="Of a shape: how many, where not all.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also with torch.compile (minutes to prepare).")
    ] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also with Triton's kernels, on a GPU.")
    ] = False,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Also in tiles: least memory for long prompts.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory of speed.md, speed.json.")
    ] = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Time of prompts and of single tokens, peak memory, weights; plain and fused.

    Limits of the device are measured first; models take turns, and ratios are taken between
    runs that followed each other.
    """
    settings = speed.SpeedSettings(
        _numbers("batches", batches), _numbers("lengths", lengths), rounds, steps
    )
    if threads is not None:
        torch.set_num_threads(threads)
    place, kind = _device(device), _dtype(dtype)
    if (model is None) == (shape is None):
        raise InputError("give a MODEL to load, or a --shape with random weights; not both")
    if shape is not None:
        usual = torch.float32 if place.type == "cpu" else torch.bfloat16
        dense = speed.random_model(shape, kind or usual, place, blocks=blocks)
        smaller = speed.factor_randomly(copy.deepcopy(dense), keep, layer, rank_multiple)
        fewer = "" if blocks is None else f", {blocks} blocks"
        what = f"{shape}, keep {keep:g}, {layer}{fewer}"
    else:
        assert model is not None
        dense, smaller = _loaded(model, original, kind, place, trust_remote_code)
        what = model
    if kernels and place.type != "cuda":
        raise InputError("--kernels needs a GPU; on a processor they only run interpreted")
    contestants = speed.line_up(dense, smaller, compiled, kernels, tiles)
    _print(speed.bench_speed(contestants, settings, show.track), what, output, json)


def _loaded(
    name: str, original: str | None, dtype: torch.dtype | None, place: Any, trust: bool
) -> tuple[Any, Any]:
    """The dense model or None, and the compressed one or None."""
    options: dict[str, Any] = {"dtype": dtype or "auto", "trust_remote_code": trust}
    found = hub.load(name, **options)[0].to(place).eval()
    dense = None
    if original is not None:
        options["dtype"] = found.dtype
        dense = hub.load(original, **options)[0].to(place).eval()
    if any(True for _ in factored_layers(found)):
        return dense, found
    if dense is not None:
        raise InputError(f"{name} has no factored layer to compare with {original}")
    return found, None


def _print(result: speed.SpeedResult, what: str, output: Path | None, json: bool) -> None:
    values = speed_table.values(result, what)
    if output is not None:
        write_text(output / "speed.md", speed_table.markdown(result, what))
        write_text(output / "speed.json", json_text.dumps(values, indent=1) + "\n")
    if json:
        show.as_json(values)
    else:
        title = speed_table.title(result, what)
        show.table(title, speed_table.NARROW_HEAD, speed_table.narrow_cells(result))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--{option} {text}: expected whole numbers with commas") from error


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: no such device; cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this machine has no GPU that torch can use")
    return device


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in _DTYPES:
        raise InputError(f"--dtype {name}: expected one of {', '.join(_DTYPES)}")
    return None if name is None else getattr(torch, name)
