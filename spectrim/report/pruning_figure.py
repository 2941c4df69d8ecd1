"""The loss of a task over the prunings of a model that is tuned in between."""

from __future__ import annotations

import json
from dataclasses import replace
from math import floor

from markupsafe import Markup

from spectrim.errors import CheckpointError
from spectrim.report import formatting
from spectrim.report.axes import kept_tick, kept_ticks, loss_grid
from spectrim.report.facts import Point, ReportData
from spectrim.report.svg import Axes, Box, decades, element, polyline

WIDTH, HEIGHT = 400, 290
BOX = Box(46, 32, 374, 250)


def with_prunings(facts: ReportData, events: str, source: str = "events") -> ReportData:
    """Add the kept fraction and the losses of each pruning, one JSON object per line.

    Raises CheckpointError for a line that is not a pruning.
    """
    points: list[Point] = []
    for number, row in enumerate(events.splitlines(), 1):
        try:
            event = json.loads(row)
            before = float(event["loss"]) - float(event["measured"])
            points.append(Point(float(event["kept_before"]), before))
            points.append(Point(float(event["kept_after"]), float(event["loss"])))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{source}, line {number}, is not a pruning step: {error}"
            ) from error
    return replace(facts, prunings=points)


def pruning_figure(facts: ReportData) -> Markup:
    """Draw two points per pruning, before and after it; between prunings the model is tuned."""
    points = facts.prunings
    low, high = decades([point.loss for point in points])
    first = floor(min(point.kept for point in points) * 10 + 1e-6) / 10
    axes = Axes(BOX, min(first, 0.9), 1.0, low, high)
    drawn = [(axes.x(point.kept), axes.y(point.loss)) for point in points]
    return element(
        "svg",
        *loss_grid(axes, "loss of the task, nats per token"),
        *(part for kept in kept_ticks(axes) for part in kept_tick(axes, kept)),
        polyline(drawn, "curve"),
        *(_after(axes, point) for point in points[1::2]),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label="the task's loss at every size that the model went through",
        id="prunings",
    )


def _after(axes: Axes, point: Point) -> Markup:
    words = f"{formatting.percent(point.kept)} kept: loss {formatting.loss(point.loss)}"
    place = {"cx": axes.x(point.kept), "cy": axes.y(point.loss)}
    return element("circle", element("title", words), **place, r=4, class_="probe")
