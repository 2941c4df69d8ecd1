"""A speed benchmark as Markdown and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from spectrim.evaluation.speed import SpeedResult, SpeedRow

HEAD = (
    "phase",
    "batch",
    "length",
    "model",
    "ms",
    "tokens/s",
    "speedup",
    "of limit",
    "activations MB",
    "transient MB",
    "weights MB",
)
NARROW_HEAD = ("case", "model", "ms", "speedup", "limit", "peak MB", "block MB", "weights MB")
"""Of a terminal, without what follows from the rest."""
_NOTES = """\
ms: median, of a prefill of batch x length tokens, or of one decoded token of every row behind \
`length` others. speedup: over dense run the same way, median of ratios of runs that took \
turns. of limit: share of the measured bandwidth (decode) or arithmetic (prefill). \
activations: peak bytes allocated by the run; transient: of a block's peak, what it has let \
go of when it ends.
"""


def cells(result: SpeedResult) -> list[tuple[str, ...]]:
    return [_cells(row) for row in result.rows]


def _cells(row: SpeedRow) -> tuple[str, ...]:
    return (
        row.case.phase,
        str(row.case.batch),
        str(row.case.length),
        row.model,
        f"{row.seconds * 1e3:.2f}",
        f"{row.tokens_per_second:,.0f}",
        f"{row.speedup:.2f}x",
        f"{row.of_limit:.0%}",
        f"{row.peak_activation_bytes / 1e6:.1f}",
        f"{row.transient_bytes / 1e6:.1f}",
        f"{row.weight_bytes / 1e6:.1f}",
    )


def narrow_cells(result: SpeedResult) -> list[tuple[str, ...]]:
    """Return the cells under `NARROW_HEAD`; its "block" is transient memory."""
    found = []
    for phase, batch, length, model, ms, _, *rest in cells(result):
        found.append((f"{phase} {batch}x{length}", model, ms, *rest))
    return found


def title(result: SpeedResult, what: str) -> str:
    """Return what was run where, and the measured limits."""
    place = f"{result.device}, {result.dtype}"
    if result.device == "cpu":
        place += f", {result.threads} thread{'s' if result.threads > 1 else ''}"
    limits = result.limits
    return (
        f"{what}: {place}; limits {limits.bytes_per_second / 1e9:.1f} GB/s, "
        f"{limits.operations_per_second / 1e9:.0f} Gop/s"
    )


def markdown(result: SpeedResult, what: str) -> str:
    lines = [HEAD, tuple("---" for _ in HEAD), *cells(result)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{title(result, what)}\n\n{table}\n\n{_NOTES}"


def values(result: SpeedResult, what: str) -> dict[str, Any]:
    return {"what": what, **asdict(result)}
