"""Loss increase against bytes or time, one line per recipe, as a self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from spectrim.pipeline.benchmark import BenchRow

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
LEGEND_LINE = 18
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a")
DASHES = ("", "6 3", "2 3")
_LEAST = 1e-6

Point = tuple[float, float]
"""Size (bytes of the layers, or their share of the dense ones' time), loss increase."""


@dataclass(frozen=True)
class _Size:
    """The unit of x: its name, the text of a tick and of a point."""

    name: str
    tick: str
    point: str


_BYTES = _Size("bytes of the compressed layers", "{:,.0f}", "{:,.0f} bytes")
_TIME = _Size("time of the compressed layers, share of the dense ones'", "{:.2f}", "{:.3f}")


@dataclass(frozen=True)
class _Axes:
    """Sizes 0..most on x, loss on a logarithmic y from 10^low to 10^high."""

    most: float
    low: int
    high: int
    size: _Size

    def x(self, size: float) -> float:
        return LEFT + size / self.most * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        share = (log10(max(loss, 10.0**self.low)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def bench_svg(rows: Sequence[BenchRow], title: str) -> str:
    """Return the SVG text; losses of zero or below are drawn at the lower edge."""
    lines = lines_of(rows)
    counted = _TIME if any(row.time is not None for row in rows) else _BYTES
    axes = _axes([point for points in lines.values() for point in points], counted)
    drawn = "".join(
        _line(axes, name, points, number) for number, (name, points) in enumerate(lines.items())
    )
    height = HEIGHT + LEGEND_LINE * len(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>'
        f"{_grid(axes)}{drawn}</svg>\n"
    )


def lines_of(rows: Sequence[BenchRow]) -> dict[str, list[Point]]:
    """Return each recipe's points in order of size; loss on the first text."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        size = row.layer_bytes if row.time is None else row.time
        if size is not None and row.loss_increase:
            loss = next(iter(row.loss_increase.values()))
            lines.setdefault(row.name, []).append((size, loss))
    return {name: sorted(points) for name, points in lines.items()}


def _axes(points: Sequence[Point], size: _Size) -> _Axes:
    losses = [max(loss, _LEAST) for _, loss in points]
    if not losses:
        return _Axes(1, -3, 1, size)
    low, high = floor(log10(min(losses))), ceil(log10(max(losses)))
    return _Axes(max(size for size, _ in points), low, max(high, low + 1), size)


def _line(axes: _Axes, name: str, points: Sequence[Point], number: int) -> str:
    color = COLORS[number % len(COLORS)]
    dash = DASHES[number // len(COLORS) % len(DASHES)]
    stroke = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'
    path = " ".join(f"{axes.x(size):.1f},{axes.y(loss):.1f}" for size, loss in points)
    dots = "".join(
        f'<circle cx="{axes.x(size):.1f}" cy="{axes.y(loss):.1f}" r="3" fill="{color}">'
        f"<title>{escape(name)}: {axes.size.point.format(size)}, {loss:+.4f} nats</title>"
        "</circle>"
        for size, loss in points
    )
    y = HEIGHT + LEGEND_LINE * number
    return (
        f'<polyline points="{path}" fill="none" {stroke}/>{dots}'
        f'<line x1="{LEFT}" y1="{y - 4}" x2="{LEFT + 30}" y2="{y - 4}" {stroke}/>'
        f'<text x="{LEFT + 38}" y="{y}">{escape(name)}</text>'
    )


def _grid(axes: _Axes) -> str:
    parts = []
    for fifth in range(6):
        size = axes.most * fifth / 5
        x = axes.x(size)
        parts.append(
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{axes.size.tick.format(size)}</text>"
        )
    for power in range(axes.low, axes.high + 1):
        y = axes.y(10.0**power)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 18}" text-anchor="middle">'
        f"{axes.size.name}</text>"
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">loss increase, nats per token</text>'
    )
    return "".join(parts)
