"""One layer: its singular values, and below them the predicted loss at every rank."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from spectrim.report import formatting
from spectrim.report.facts import LayerFacts
from spectrim.report.svg import Axes, Box, decades, element, line, polyline, text

WIDTH, HEIGHT = 400, 310
UPPER, LOWER = Box(46, 32, 386, 130), Box(46, 184, 386, 282)


def spectrum_figure(layer: LayerFacts, units: str) -> Markup:
    """Draw a `layer` with ranks. The kept rank is a line through both parts."""
    upper, lower = _axes(layer, layer.spectrum, UPPER), _axes(layer, layer.losses, LOWER)
    return element(
        "svg",
        *_grid(upper, "singular values of the weighted layer"),
        *_grid(lower, f"loss increase of this layer alone, {_units(units)}"),
        *_ranks(lower),
        _drawn(upper, layer.ranks, layer.spectrum, "spectrum"),
        _drawn(lower, layer.ranks, layer.losses, "curve"),
        _kept(upper, layer.rank),
        element("g", *_through_both(UPPER.top, "cursor"), class_="rank-cursor off"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"spectrum and predicted loss of {layer.name}",
    )


def _units(units: str) -> str:
    return "in the method's own units" if units == "own" else units


def _axes(layer: LayerFacts, values: Sequence[float], box: Box) -> Axes:
    return Axes(box, 1, layer.ranks[-1], *decades(values, 4))


def _grid(axes: Axes, title: str) -> list[Markup]:
    parts = [text(2, axes.box.top - 14, title, "title")]
    powers = axes.powers()
    for power in powers if len(powers) <= 3 else (axes.low, axes.high):
        y = axes.y(10.0**power)
        parts += [
            line(axes.box.left, y, axes.box.right, y, "grid"),
            text(axes.box.left - 6, y + 4, formatting.tick(power), "tick", "end"),
        ]
    return parts


def _ranks(axes: Axes) -> list[Markup]:
    last = int(axes.last)
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        rank = max(1, round(share * last))
        anchor = "end" if share == 1.0 else "start" if share == 0.0 else "middle"
        words = f"rank {rank}" if share == 0.0 else str(rank)
        parts.append(text(axes.x(rank), axes.box.bottom + 18, words, "tick", anchor))
    return parts


def _drawn(axes: Axes, ranks: Sequence[int], values: Sequence[float], class_: str) -> Markup:
    shown = [(r, v) for r, v in zip(ranks, values, strict=True) if v >= 10.0**axes.low]
    return polyline([(axes.x(rank), axes.y(value)) for rank, value in shown], class_)


def _through_both(top: float, class_: str) -> tuple[Markup, Markup]:
    """Draw a vertical line through both parts, but not through the title between them."""
    return (
        line(0, top, 0, UPPER.bottom, class_),
        line(0, LOWER.top - 4, 0, LOWER.bottom, class_),
    )


def _kept(axes: Axes, rank: int | None) -> Markup:
    """Draw a line at the kept rank, hidden at the last rank for a dense layer."""
    at = axes.x(axes.last if rank is None else rank)
    left = at > (axes.box.left + axes.box.right) / 2
    anchor, gap = ("end", -6.0) if left else ("start", 6.0)
    return element(
        "g",
        *_through_both(UPPER.top - 6, "kept"),
        text(gap, UPPER.top + 4, f"kept: {rank or axes.last}", "mark chosen", anchor),
        class_="keep off" if rank is None else "keep",
        transform=f"translate({at:.1f} 0)",
    )
