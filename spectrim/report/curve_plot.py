"""The size/quality curve as a small self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence

from spectrim.models.kind import CAUSAL
from spectrim.planning import SizeLossPoint
from spectrim.report.svg import Axes, Box, decades, document, grid

WIDTH, HEIGHT = 640, 400
BOX = Box(70.0, 40.0, WIDTH - 20.0, HEIGHT - 50.0)
_MOST_DECADES = 6


def curve_svg(
    points: Sequence[SizeLossPoint],
    title: str,
    chosen: float | None = None,
    units: str = CAUSAL.units,
) -> str:
    """Return the SVG text; `chosen` is the kept fraction of a plan to mark."""
    shown = [point for point in points if point.predicted_loss > 0]
    powers = decades([point.predicted_loss for point in shown], _MOST_DECADES)
    axes = Axes(BOX, 0.0, 1.0, *powers)
    ticks = {tenth / 10: f"{tenth / 10}" for tenth in range(0, 11, 2)}
    titles = "kept fraction of the layers' weights", f"predicted loss increase, {units}"
    line = " ".join(f"{axes.x(p.kept):.1f},{axes.y(p.predicted_loss):.1f}" for p in shown)
    dots = "".join(
        f'<circle cx="{axes.x(p.kept):.1f}" cy="{axes.y(p.predicted_loss):.1f}" r="3" '
        f'fill="#1f6feb"><title>{p.kept:.3f}: +{p.predicted_loss:.4f} nats</title></circle>'
        for p in shown
    )
    curve = f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>{dots}'
    inside = f"{grid(axes, ticks, titles)}{_mark(axes, chosen)}{curve}"
    return document(title, (WIDTH, HEIGHT), inside)


def _mark(axes: Axes, chosen: float | None) -> str:
    if chosen is None:
        return ""
    x = axes.x(chosen)
    return (
        f'<line x1="{x:.1f}" y1="{BOX.top}" x2="{x:.1f}" y2="{BOX.bottom}" '
        'stroke="#d1242f" stroke-dasharray="4 3"/>'
    )
