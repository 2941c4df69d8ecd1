"""`spectrim bench-speed`: seconds and bytes of a model, dense against compressed."""

from __future__ import annotations

import copy
import json as json_text
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli import console, progress
from spectrim.cli.options import Json, RemoteCode, Size
from spectrim.errors import InputError

if TYPE_CHECKING:
    import torch

    from spectrim.evaluation import speed

_DTYPES = ("float32", "bfloat16", "float16")


Named = Annotated[str | None, typer.Argument(help="Compressed model (or use --shape).")]
Original = Annotated[str | None, typer.Option(help="Dense model to compare with.")]
ShapeName = Annotated[
    str | None,
    typer.Option(help="Use random weights of this shape (llama-7b, ...) or config.json."),
]
Keep = Annotated[float, typer.Option(help="Fraction of the shape's weights to keep.")]
Layer = Annotated[str, typer.Option(metavar="lowrank|pivoted", help="Layer type of the shape.")]
Multiple = Annotated[int, typer.Option(help="Round the shape's ranks to multiples of this.")]
Blocks = Annotated[int | None, typer.Option(help="Number of the shape's blocks (default all).")]
Device = Annotated[
    str | None,
    typer.Option(metavar="cpu|cuda", help="Device (default: a GPU if there is one)."),
]
Dtype = Annotated[
    str | None, typer.Option(metavar="|".join(_DTYPES), help="Dtype of the weights.")
]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads.")]
Batches = Annotated[str, typer.Option(help="Batch sizes, separated by commas.")]
Lengths = Annotated[str, typer.Option(help="Tokens per row, separated by commas.")]
Rounds = Annotated[int, typer.Option(help="Repetitions of each measurement.")]
Steps = Annotated[int, typer.Option(help="Number of tokens to decode.")]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compile", help="Also measure with torch.compile (takes minutes to prepare)."
    ),
]
Kernels = Annotated[
    bool, typer.Option("--kernels", help="Also measure with Triton kernels, on a GPU.")
]
Tiles = Annotated[
    bool,
    typer.Option(
        "--tiles", help="Also measure in tiles, which use the least memory for long prompts."
    ),
]
Results = Annotated[
    Path | None, typer.Option("-o", "--output", help="Directory for speed.md and speed.json.")
]


def bench_speed(
    model: Named = None,
    original: Original = None,
    budget: Size = None,
    shape: ShapeName = None,
    keep: Keep = 0.5,
    layer: Layer = "lowrank",
    rank_multiple: Multiple = 1,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    batches: Batches = "1,4",
    lengths: Lengths = "128,512",
    rounds: Rounds = 9,
    steps: Steps = 8,
    blocks: Blocks = None,
    compiled: Compiled = False,
    kernels: Kernels = False,
    tiles: Tiles = False,
    output: Results = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Measure the time of prompts and tokens, peak memory and weight bytes.

    The limits of the device are measured first. The models take turns, and ratios compare
    consecutive runs.
    """
    import torch

    from spectrim.evaluation import speed

    settings = speed.SpeedSettings(
        _numbers("batches", batches), _numbers("lengths", lengths), rounds, steps
    )
    if threads is not None:
        torch.set_num_threads(threads)
    place, kind = _device(device), _dtype(dtype)
    if (model is None) == (shape is None):
        raise InputError("give a MODEL to load, or a --shape with random weights; not both")
    if shape is not None:
        wanted = _Shape(shape, keep, layer, rank_multiple, blocks)
        what, dense, smaller = wanted.title, *wanted.models(kind, place)
    else:
        what = model or ""
        options = {"dtype": kind or "auto", "trust_remote_code": trust_remote_code}
        dense, smaller = _loaded(what, original, place, options, budget)
    if kernels and place.type != "cuda":
        raise InputError("--kernels needs a GPU; on a processor they only run interpreted")
    contestants = speed.make_variants(dense, smaller, compiled, kernels, tiles)
    _print(speed.bench_speed(contestants, settings, progress.track), what, output, json)


@dataclass(frozen=True)
class _Shape:
    """A shape with random weights, of which layers of a kind keep `keep`."""

    name: str
    keep: float
    layer: str
    rank_multiple: int
    blocks: int | None

    @property
    def title(self) -> str:
        fewer = "" if self.blocks is None else f", {self.blocks} blocks"
        return f"{self.name}, keep {self.keep:g}, {self.layer}{fewer}"

    def models(self, dtype: torch.dtype | None, place: torch.device) -> tuple[Any, Any]:
        """Return a dense and a compressed model, by default in the device's usual dtype."""
        import torch

        from spectrim.evaluation import speed

        usual = torch.float32 if place.type == "cpu" else torch.bfloat16
        dense = speed.random_model(self.name, dtype or usual, place, blocks=self.blocks)
        copied = copy.deepcopy(dense)
        return dense, speed.factorize_randomly(
            copied, self.keep, self.layer, self.rank_multiple
        )


def _loaded(
    name: str,
    original: str | None,
    place: Any,
    options: dict[str, Any],
    budget: float | None,
) -> tuple[Any, Any]:
    """Return the dense model or None, and the compressed one or None."""
    from spectrim import checkpoint
    from spectrim.models.replace import factored_layers

    checkpoint.check_causal(name)
    found = checkpoint.load(name, budget=budget, **options)[0].to(place).eval()
    dense = None
    if original is not None:
        options["dtype"] = found.dtype
        dense = checkpoint.load(original, **options)[0].to(place).eval()
    if any(True for _ in factored_layers(found)):
        return dense, found
    if dense is not None:
        raise InputError(f"{name} has no factored layer to compare with {original}")
    return found, None


def _print(result: speed.SpeedResult, what: str, output: Path | None, json: bool) -> None:
    from spectrim.report import speed_table
    from spectrim.runtime.files import write_text

    values = speed_table.values(result, what)
    if output is not None:
        write_text(output / "speed.md", speed_table.markdown(result, what))
        write_text(output / "speed.json", json_text.dumps(values, indent=1) + "\n")
    if json:
        console.as_json(values)
    else:
        title = speed_table.title(result, what)
        console.table(title, speed_table.NARROW_HEAD, speed_table.narrow_cells(result))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--{option} {text}: expected whole numbers with commas") from error


def _device(name: str | None) -> torch.device:
    import torch

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
    import torch

    if name is not None and name not in _DTYPES:
        raise InputError(f"--dtype {name}: expected one of {', '.join(_DTYPES)}")
    return None if name is None else getattr(torch, name)
