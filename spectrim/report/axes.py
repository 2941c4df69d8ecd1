"""The background of figures of loss against the kept share of the weights."""

from __future__ import annotations

from markupsafe import Markup

from spectrim.report import formatting
from spectrim.report.svg import Axes, line, text

_MOST_TICKS = 5


def loss_grid(axes: Axes, title: str) -> list[Markup]:
    """Return the title, and a line for each labeled power of ten."""
    box, parts = axes.box, [text(2, 14, title, "title")]
    for power in axes.powers():
        y = axes.y(10.0**power)
        parts += [
            line(box.left, y, box.right, y, "grid"),
            text(box.left - 6, y + 4, formatting.tick(power), "tick", "end"),
        ]
    return parts


def kept_ticks(axes: Axes) -> list[float]:
    """Return tenths from right to left, every second one if there are many."""
    first, last = round(axes.first * 10), round(axes.last * 10)
    step = 2 if last - first > _MOST_TICKS else 1
    return [tenth / 10 for tenth in range(last, first - 1, -step)]


def kept_tick(axes: Axes, kept: float) -> list[Markup]:
    x, bottom = axes.x(kept), axes.box.bottom
    return [
        line(x, bottom, x, bottom + 4, "axis"),
        text(x, bottom + 18, formatting.percent(kept), "tick", "middle"),
    ]
