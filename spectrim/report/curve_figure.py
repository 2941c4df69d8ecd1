"""The size/quality curve: the predicted loss of every size, and the measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from markupsafe import Markup

from spectrim.report import formatting
from spectrim.report.axes import kept_tick, kept_ticks, loss_grid
from spectrim.report.facts import Point, ReportData
from spectrim.report.svg import Axes, Box, decades, element, line, polyline, text

WIDTH, HEIGHT = 400, 310
BOX = Box(46, 32, 374, 262)
_LABEL_ROOM = 122
"""Width that a label beside a point takes."""


def axes_of(facts: ReportData) -> Axes:
    points = [*facts.curve, *facts.probes]
    shown = [facts.predicted_loss, facts.result, *(point.loss for point in points)]
    low, high = decades([loss for loss in shown if loss])
    first = min([facts.kept, *(point.kept for point in points)])
    return Axes(BOX, floor(first * 10 + 1e-6) / 10, 1.0, low, high)


def curve_figure(facts: ReportData) -> Markup:
    axes = axes_of(facts)
    drawn = [point for point in facts.curve if point.loss >= 10.0**axes.low]
    name = "predicted loss increase at every size, with what was measured"
    return element(
        "svg",
        *loss_grid(axes, f"loss increase, {facts.of_kind.units}"),
        *(part for kept in kept_ticks(axes) for part in _tick(axes, facts, kept)),
        polyline([(axes.x(p.kept), axes.y(p.loss)) for p in drawn], "curve"),
        *_probes(axes, facts.probes),
        *_marks(axes, facts),
        element("g", line(0, BOX.top, 0, BOX.bottom, "cursor"), id="cursor", class_="off"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=name,
        id="curve",
    )


def _tick(axes: Axes, facts: ReportData, kept: float) -> list[Markup]:
    """Return the share of the weights with the size of the file below it."""
    parts = kept_tick(axes, kept)
    if facts.parts:
        words = formatting.size(bytes_at(facts, kept))
        parts.append(text(axes.x(kept), BOX.bottom + 34, words, "tick faint", "middle"))
    return parts


def bytes_at(facts: ReportData, kept: float) -> float:
    """Return the bytes of the whole model with that share of the layers' weights."""
    return facts.other_bytes + kept * facts.dense_weights * facts.itemsize


def _probes(axes: Axes, probes: Sequence[Point]) -> list[Markup]:
    return [
        element(
            "circle",
            element("title", f"a full-model plan, measured: +{formatting.loss(p.loss)}"),
            cx=axes.x(p.kept),
            cy=axes.y(p.loss),
            r=4,
            class_="probe",
        )
        for p in probes
    ]


def _marks(axes: Axes, facts: ReportData) -> list[Markup]:
    """Return the plan and the saved model if it was measured, the higher one first."""
    x, found = axes.x(facts.kept), []
    if facts.predicted_loss is not None:
        y = axes.y(facts.predicted_loss)
        mark = element("circle", cx=x, cy=y, r=5, class_="chosen", id="chosen")
        found.append((y, mark, f"predicted +{formatting.loss(facts.predicted_loss)}", "chosen"))
    if facts.result is not None:
        y = axes.y(facts.result)
        found.append((y, _diamond(x, y), f"KL +{formatting.loss(facts.result)}", "result"))
    labels = _labels(axes, x, sorted((y, words, kind) for y, _, words, kind in found))
    return [mark for _, mark, _, _ in found] + labels


def _diamond(x: float, y: float) -> Markup:
    corners = ((x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y))
    points = " ".join(f"{across:.1f},{down:.1f}" for across, down in corners)
    return element("polygon", points=points, class_="result")


def _labels(axes: Axes, x: float, marks: Sequence[tuple[float, str, str]]) -> list[Markup]:
    """Place labels above to the right of falling curves, else below on the other side."""
    right, below = x + _LABEL_ROOM < WIDTH, x - _LABEL_ROOM > axes.box.left
    labels, floor_ = [], axes.box.bottom - 6
    for number, (y, words, kind) in enumerate(marks):
        if right and (number == 0 or not below):
            at = max(y - 10 + 30 * number, axes.box.top + 12)
            labels.append(text(x + 9, min(at, floor_), words, f"mark {kind}"))
        else:
            at = max(y for y, _, _ in marks) + 18 + (0 if right else 17 * number)
            at = min(at, floor_ - (0 if right else 17 * (len(marks) - 1 - number)))
            labels.append(text(x - 9, at, words, f"mark {kind}", "end"))
    return labels
