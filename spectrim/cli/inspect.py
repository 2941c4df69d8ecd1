"""`spectrim inspect`: the ranks of the weights themselves, before and after compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli import console, progress
from spectrim.cli.options import Json, RemoteCode
from spectrim.cli.text_errors import errors_on, plain, print_errors
from spectrim.errors import InputError

if TYPE_CHECKING:
    from spectrim.pipeline.inspect import LayerReport, Timing

_COLUMNS = ("layer", "shape", "rank", "effective", "stable", "tail", "plain <", "pivoted <")
_TITLE = "{}: ranks of the weights, tail exponent, and ranks below which factors are smaller"


def inspect(
    models: Annotated[list[str], typer.Argument(help="Dense or compressed models.")],
    data: Annotated[
        str | None, typer.Option(help="Text for hidden states and compression errors.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Number of tokens to read.")] = 4096,
    length: Annotated[int | None, typer.Option(help="Tokens per row.")] = None,
    original: Annotated[
        str | None,
        typer.Option(help="Dense model for compression errors (default: from the report)."),
    ] = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Show effective and stable rank, heavy tails and break-even ranks of every layer.

    With --data, also show the hidden states and compression errors on that text.
    """
    import torch

    from spectrim import checkpoint
    from spectrim.data import BlockSettings, check_vocabulary, token_blocks
    from spectrim.pipeline.calibration_defaults import default_length, vocabulary_size
    from spectrim.pipeline.inspect import (
        inspect_layers,
        removed_experts,
        representation,
        timings,
    )

    results = {}
    for name in models:
        if data is not None:
            checkpoint.check_causal(name)
        model, tokenizer = checkpoint.load(
            name, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        found: dict[str, Any] = {"layers": inspect_layers(model, progress.track)}
        found |= {"experts": removed_experts(model)}
        if data is not None:
            if tokenizer is None:
                raise InputError(f"{name} has no tokenizer; put its files beside the model")
            settings = BlockSettings(
                length=length or default_length(model),
                max_tokens=tokens,
                keep_tail=True,
            )
            blocks = token_blocks(data, tokenizer, settings)
            check_vocabulary(blocks, vocabulary_size(model))
            found |= {"hidden_states": representation(model, blocks)}
            found |= {"times": timings(model, blocks)}
            found |= {"errors": errors_on(Path(name), model, data, tokens, original)}
        results[name] = found
    if json:
        console.as_json({name: _plain(found) for name, found in results.items()})
        return
    for name, found in results.items():
        _print(name, found)
    if data is not None:
        console.figures_table({name: found["hidden_states"] for name, found in results.items()})


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have."""
    layers = [asdict(layer) for layer in found["layers"]]
    for layer in layers:
        exponent = layer["tail_exponent"]
        layer["tail_exponent"] = exponent if abs(exponent) < float("inf") else None
    times = [asdict(timing) for timing in found.get("times", [])]
    more = {"hidden_states": found["hidden_states"], "times": times} if times else {}
    if (errors := found.get("errors")) is not None:
        more["errors"] = plain(errors)
    if experts := found.get("experts"):
        more["removed_experts"] = {name: removed for name, (_, removed) in experts.items()}
    return {"layers": layers, **more}


def _print(name: str, found: dict[str, Any]) -> None:
    layers = found["layers"]
    names = console.short_names([layer.name for layer in layers])
    rows = [_row(short, layer) for short, layer in zip(names, layers, strict=True)]
    columns: tuple[str, ...] = _COLUMNS
    if all(layer.rank is None for layer in layers):
        columns, *rows = ((*row[:2], *row[3:]) for row in (columns, *rows))
    console.table(_TITLE.format(name), columns, rows)
    console.experts_table(found.get("experts", {}))
    if times := found.get("times"):
        _print_times(name, times)
    if (errors := found.get("errors")) is not None:
        print_errors(name, errors)


def _row(name: str, layer: LayerReport) -> tuple[str, ...]:
    return (
        name,
        f"{layer.shape[0]}x{layer.shape[1]}",
        "dense" if layer.rank is None else str(layer.rank),
        f"{layer.effective_rank:.1f}",
        f"{layer.stable_rank:.1f}",
        f"{layer.tail_exponent:.2f}",
        str(layer.break_even_plain),
        str(layer.break_even_pivoted),
    )


def _print_times(name: str, times: Sequence[Timing]) -> None:
    head = ("tokens", "nuclear norm", "ms", "entropy", "ms", "times as long")
    rows = [
        (
            str(t.tokens),
            f"{t.nuclear_norm:.4f}",
            f"{t.nuclear_norm_ms:.3f}",
            f"{t.entropy:.4f}",
            f"{t.entropy_ms:.3f}",
            f"{t.entropy_ms / max(t.nuclear_norm_ms, 1e-6):.1f}",
        )
        for t in times
    ]
    console.table(f"{name}: hidden states of growing texts", head, rows)
