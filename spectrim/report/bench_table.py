"""A benchmark as Markdown and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spectrim.pipeline.benchmark import Bench, BenchRow

STAGES = ("calibrate", "decompose", "measure", "compress", "refine", "evaluate")
_AT_EQUAL_TIME = """\
budget: fraction of the dense layers' time, from the time of each shape on this machine; \
time: the row's own fused layers one after another, relative to the dense ones, measured when \
the row was made; if that exceeded the budget, the row was planned again with less.
"""
_NOTES = """\
layer bytes: the compressed layers as stored (weights, indices, biases); file bytes: the \
whole file; kept: fraction of the layers' weights, in bytes. Rows with the same budget have \
at most the same bytes; `!` marks a row that exceeds its budget.
KL: from the original on the first text. predicted: loss increase on the calibration text \
before refinement. measured: loss increase on the first text. All in nats per token.
seconds: CPU time of all threads (wall clock if the model is on an accelerator); `-`: read \
from the cache or not needed. calibrate: one pass serves all rows of a call and counts in \
each of them; Hessian averaging belongs to its recipe. Rows of one recipe share decompose \
and measure. compress: includes all plans until one fits.
peak: highest resident memory of the row above what was in use before it, without the steps \
that were read from the cache.
"""


def columns(bench: Bench) -> tuple[str, ...]:
    texts = [f"perplexity {name}" for name in short_names(list(bench.dense.perplexity))]
    return (
        "recipe",
        "budget",
        *(("planned time", "time") if at_equal_time(bench) else ()),
        "kept",
        "layer bytes",
        "file bytes",
        *texts,
        "KL",
        "predicted",
        "measured",
        *(f"{stage} s" for stage in STAGES),
        "peak MiB",
    )


def cells(bench: Bench) -> list[tuple[str, ...]]:
    """Return the table's cells: the original, then a line per row."""
    lines = [_dense_cells(bench), *(_cells(row, list(bench.dense.loss)) for row in bench.rows)]
    if not at_equal_time(bench):
        return lines
    times = [("-", "1.000"), *(_time_cells(row) for row in bench.rows)]
    return [(*line[:2], *time, *line[2:]) for line, time in zip(lines, times, strict=True)]


def at_equal_time(bench: Bench) -> bool:
    return any(row.recipe.get("latency") for row in bench.rows)


def summary(bench: Bench) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and lines of a table that fits a terminal."""
    head = columns(bench)
    left_out = {"file bytes", "planned time", "KL", "predicted", "peak MiB"}
    left_out |= {f"{stage} s" for stage in STAGES}
    shown = [number for number, name in enumerate(head) if name not in left_out]
    short = tuple(head[number].removeprefix("perplexity ") for number in shown)
    return short, [tuple(line[number] for number in shown) for line in cells(bench)]


def markdown(bench: Bench, title: str) -> str:
    head = columns(bench)
    lines = [f"# {title}", "", _line(head), _line(["---"] * len(head))]
    lines += [_line(row) for row in cells(bench)]
    lines += ["", *(f"- {note}" for note in notes(bench))]
    return "\n".join(lines) + "\n"


def values(bench: Bench, model: str) -> dict[str, Any]:
    """Return JSON values: all figures unrounded, with the recipe of every row."""
    rows = [asdict(row) | {"exceeds_budget": row.exceeds} for row in bench.rows]
    return {
        "model": model,
        "dense": asdict(bench.dense),
        "rows": rows,
        "rows_wanted": bench.wanted,
        "rows_made": bench.made,
        "notes": list(notes(bench)),
    }


def notes(bench: Bench) -> Iterator[str]:
    if at_equal_time(bench):
        yield from _AT_EQUAL_TIME.splitlines()
    yield from _NOTES.splitlines()
    if len(bench.rows) < bench.wanted:
        yield f"unfinished: {len(bench.rows)} of {bench.wanted} rows"
    for row in bench.rows:
        if row.error is not None:
            yield f"{row.name} at {row.budget:g}: {row.error}"


def short_names(texts: Sequence[str]) -> list[str]:
    """Return file names in place of paths if they stay distinct."""
    short = [Path(text).name or text for text in texts]
    return short if len(set(short)) == len(short) else list(texts)


def _dense_cells(bench: Bench) -> tuple[str, ...]:
    found = bench.dense
    perplexities = [f"{value:.3f}" for value in found.perplexity.values()]
    rest = ["-"] * (len(STAGES) + 4)
    return ("original", "-", "1.0000", "-", f"{found.file_bytes:,}", *perplexities, *rest)


def _time_cells(row: BenchRow) -> tuple[str, str]:
    mark = "!" if row.exceeds else ""
    return _number(row.planned_time, ".3f"), _number(row.time, ".3f") + mark


def _cells(row: BenchRow, texts: Sequence[str]) -> tuple[str, ...]:
    mark = "!" if row.exceeds and row.time is None else ""
    loss = row.loss_increase.get(texts[0])
    return (
        row.name,
        f"{row.budget:g}",
        _number(row.kept, ".4f"),
        _number(row.layer_bytes, ",") + mark,
        _number(row.file_bytes, ","),
        *(_number(row.perplexity.get(text), ".3f") for text in texts),
        _number(row.kl_divergence, ".4f"),
        _number(row.predicted_loss, ".4f"),
        _number(loss, ".4f") if row.error is None else "error",
        *(_number(row.seconds.get(stage), ".1f") for stage in STAGES),
        _number(None if row.peak_memory is None else row.peak_memory / 2**20, ".0f"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"
