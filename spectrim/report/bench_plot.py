"""Loss increase against bytes or time, one line per recipe, as a self-contained SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from spectrim.pipeline.benchmark import BenchRow
from spectrim.report import formatting
from spectrim.report.formatting import UNITS
from spectrim.report.svg import Axes, Box, document, grid

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 36, 40, 50
LEGEND_LINE = 18
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a")
DASHES = ("", "6 3", "2 3")
_LEAST = 1e-6
_MOST_STEPS = 6

Point = tuple[float, float]
"""Size (bytes of the layers, or their share of the dense ones' time), loss increase."""


@dataclass(frozen=True)
class _Size:
    """The unit of x: its name, what it divides by, and the text of a point."""

    name: str
    unit: float
    point: Callable[[float], str]


_TIME = _Size(
    "time of the compressed layers, share of the dense ones'", 1.0, lambda share: f"{share:.3f}"
)


def _bytes_up_to(most: float) -> _Size:
    """Return the unit in which `most` bytes are a number of one to three digits."""
    power = min(max(0, int(log10(max(most, 1)) // 3)), len(UNITS) - 1)
    name = f"size of the compressed layers, {UNITS[power]}"
    return _Size(name, 1000.0**power, formatting.size)


@dataclass(frozen=True)
class _Axes(Axes):
    """Sizes between round ticks on x."""

    ticks: Sequence[float]
    size: _Size

    @classmethod
    def of(cls, ticks: Sequence[float], low: int, high: int, size: _Size) -> _Axes:
        box = Box(float(LEFT), float(TOP), float(WIDTH - RIGHT), float(HEIGHT - BOTTOM))
        return cls(box, ticks[0], ticks[-1], low, high, ticks, size)


def round_ticks(least: float, most: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten around both ends, at most eight."""
    span = max(most - least, abs(most) * 1e-3, 1e-9)
    rough = 10.0 ** floor(log10(span / _MOST_STEPS))
    step = next(rough * n for n in (1, 2, 5, 10) if span / (rough * n) <= _MOST_STEPS)
    first, last = floor(least / step + 1e-9), ceil(most / step - 1e-9)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def bench_svg(rows: Sequence[BenchRow], title: str) -> str:
    """Return the SVG text; losses of zero or below are drawn at the lower edge."""
    lines = lines_of(rows)
    original = _original(rows)
    timed = any(row.time is not None for row in rows)
    axes = _axes([p for points in lines.values() for p in points], original, timed)
    drawn = "".join(
        _line(axes, name, points, number) for number, (name, points) in enumerate(lines.items())
    )
    ticks = {tick: f"{tick / axes.size.unit:.6g}" for tick in axes.ticks}
    scales = grid(axes, ticks, (axes.size.name, "loss increase, nats per token"))
    size = WIDTH, HEIGHT + LEGEND_LINE * len(lines)
    return document(title, size, f"{scales}{_mark(axes, original)}{drawn}")


def lines_of(rows: Sequence[BenchRow]) -> dict[str, list[Point]]:
    """Return each recipe's points in order of size; loss on the first text."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        size = row.layer_bytes if row.time is None else row.time
        if size is not None and row.loss_increase:
            loss = next(iter(row.loss_increase.values()))
            lines.setdefault(row.name, []).append((size, loss))
    return {name: sorted(points) for name, points in lines.items()}


def _original(rows: Sequence[BenchRow]) -> float | None:
    """Return the size of the layers of the original model, by the rows' shares of it."""
    if any(row.time is not None for row in rows):
        return 1.0
    sizes = [row.layer_bytes / row.kept for row in rows if row.layer_bytes and row.kept]
    return max(sizes, default=None)


def _axes(points: Sequence[Point], original: float | None, timed: bool) -> _Axes:
    sizes = [size for size, _ in points] + ([] if original is None else [original])
    counted = _TIME if timed else _bytes_up_to(max(sizes, default=1.0))
    if not points:
        return _Axes.of([0.0, counted.unit], -3, 1, counted)
    losses = [max(loss, _LEAST) for _, loss in points]
    low, high = floor(log10(min(losses))), ceil(log10(max(losses)))
    ticks = round_ticks(min(sizes) / counted.unit, max(sizes) / counted.unit)
    return _Axes.of([tick * counted.unit for tick in ticks], low, max(high, low + 1), counted)


def _mark(axes: _Axes, original: float | None) -> str:
    """Draw where the original is: it has no loss, so it is a line."""
    if original is None:
        return ""
    x = axes.x(original)
    return (
        f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" '
        'stroke="#57606a" stroke-dasharray="2 4"/>'
        f'<text x="{x - 6:.1f}" y="{TOP + 14}" text-anchor="end" fill="#57606a">original</text>'
    )


def _line(axes: _Axes, name: str, points: Sequence[Point], number: int) -> str:
    color = COLORS[number % len(COLORS)]
    dash = DASHES[number // len(COLORS) % len(DASHES)]
    stroke = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'
    path = " ".join(f"{axes.x(size):.1f},{axes.y(loss):.1f}" for size, loss in points)
    dots = "".join(
        f'<circle cx="{axes.x(size):.1f}" cy="{axes.y(loss):.1f}" r="3" fill="{color}">'
        f"<title>{escape(name)}: {axes.size.point(size)}, {loss:+.4f} nats</title>"
        "</circle>"
        for size, loss in points
    )
    y = HEIGHT + LEGEND_LINE * number
    return (
        f'<polyline points="{path}" fill="none" {stroke}/>{dots}'
        f'<line x1="{LEFT}" y1="{y - 4}" x2="{LEFT + 30}" y2="{y - 4}" {stroke}/>'
        f'<text x="{LEFT + 38}" y="{y}">{escape(name)}</text>'
    )
