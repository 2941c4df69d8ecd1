"""The size/quality curve as a small self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from spectrim.models.kind import CAUSAL
from spectrim.planning import SizeLossPoint

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50


@dataclass(frozen=True)
class _Axes:
    """Kept fraction 0..1 on x, predicted loss on a logarithmic y from 10^low to 10^high."""

    low: int
    high: int

    def x(self, kept: float) -> float:
        return LEFT + kept * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        share = (log10(max(loss, 10.0**self.low)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def curve_svg(
    points: Sequence[SizeLossPoint],
    title: str,
    chosen: float | None = None,
    units: str = CAUSAL.units,
) -> str:
    """Return the SVG text; `chosen` is the kept fraction of a plan to mark."""
    shown = [point for point in points if point.predicted_loss > 0]
    axes = _axes([point.predicted_loss for point in shown])
    line = " ".join(f"{axes.x(p.kept):.1f},{axes.y(p.predicted_loss):.1f}" for p in shown)
    dots = "".join(
        f'<circle cx="{axes.x(p.kept):.1f}" cy="{axes.y(p.predicted_loss):.1f}" r="3" '
        f'fill="#1f6feb"><title>{p.kept:.3f}: +{p.predicted_loss:.4f} nats</title></circle>'
        for p in shown
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>'
        f"{_grid(axes, units)}{_mark(axes, chosen)}"
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>{dots}'
        "</svg>\n"
    )


def _axes(losses: Sequence[float]) -> _Axes:
    if not losses:
        return _Axes(-3, 1)
    low, high = floor(log10(min(losses))), ceil(log10(max(losses)))
    return _Axes(max(low, high - 6), max(high, low + 1))


def _grid(axes: _Axes, units: str) -> str:
    parts = []
    for tenth in range(0, 11, 2):
        x = axes.x(tenth / 10)
        parts.append(
            f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tenth / 10}</text>'
        )
    for power in range(axes.low, axes.high + 1):
        y = axes.y(10.0**power)
        parts.append(
            f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{10.0**power:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "kept fraction of the layers' weights</text>"
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">predicted loss increase, {units}</text>'
    )
    return "".join(parts)


def _mark(axes: _Axes, chosen: float | None) -> str:
    if chosen is None:
        return ""
    x = axes.x(chosen)
    return (
        f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" '
        'stroke="#d1242f" stroke-dasharray="4 3"/>'
    )
