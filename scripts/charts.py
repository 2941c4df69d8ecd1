"""Draw bars, lines and boxes as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
COLORS = ("#3f51b5", "#e07a1f", "#2a9d6f", "#8a8f98")
INK, FAINT, GRID = "#1f2430", "#5b6270", "#dde1e7"
Points = list[tuple[float, float]]


def shape(tag: str, content: str | None = None, **attributes: object) -> str:
    """An element; numbers with two decimals at most, underscores of names as hyphens."""
    shown = (
        f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        for value in attributes.values()
    )
    named = zip((name.replace("_", "-") for name in attributes), shown, strict=True)
    inside = " ".join((tag, *(f'{name}="{value}"' for name, value in named)))
    return f"<{inside}/>" if content is None else f"<{inside}>{escape(content)}</{tag}>"


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = INK) -> str:
    return shape("text", words, x=float(x), y=float(y), text_anchor=anchor, fill=fill)


def box(x: float, y: float, size: tuple[float, float], fill: str, **more: object) -> str:
    width, height = map(float, size)
    return shape("rect", x=float(x), y=float(y), width=width, height=height, fill=fill, **more)


def picture(height: float, title: str, parts: Iterable[str]) -> str:
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    head = shape("text", title, x=20, y=27, text_anchor="start", fill=INK, font_weight=600)
    background = box(0, 0, (WIDTH, height), "#fff", rx=6)
    body = (shape("title", title), background, head, *parts)
    return "\n".join((start, *body, "</svg>\n"))


def legend(names: Sequence[str], y: float) -> Iterable[str]:
    x = 20.0
    for name, color in zip(names, COLORS, strict=False):
        yield box(x, y - 10, (11, 11), color, rx=2)
        yield text(x + 16, y, name, fill=FAINT)
        x += 32 + 7.0 * len(name)


def bars(
    title: str, labels: Sequence[str], series: dict[str, list[float]], log: bool = False
) -> str:
    """Horizontal bars from zero, or with `log` from the power of ten below the smallest."""
    left, right, thick = 262, 70, 13
    values = [v for column in series.values() for v in column if not math.isnan(v)]
    place = math.log10 if log else float
    low = float(math.floor(place(min(values) * 0.999))) if log else 0.0
    unit = (WIDTH - left - right) / (place(max(values)) - low)
    parts = list(legend(list(series), 50)) if len(series) > 1 else []
    y = 68.0 if parts else 46.0
    for n, label in enumerate(labels):
        parts.append(text(left - 10, y + thick * len(series) / 2 + 4, label, "end"))
        for color, column in zip(COLORS, series.values(), strict=False):
            if not math.isnan(value := column[n]):
                wide = max((place(value) - low) * unit, 1.0)
                parts.append(box(left, y, (wide, thick - 2), color))
                parts.append(text(left + wide + 5, y + 10, f"{value:,g}", fill=FAINT))
            y += thick
        y += 8
    return picture(y + 10, title, parts)


def lines(title: str, across: str, up: str, series: dict[str, Points]) -> str:
    """Lines through points; the upward axis is logarithmic, the second line dashed."""
    axes = _Axes([point for line in series.values() for point in line])
    parts = [*legend(list(series), 50), *axes.drawn()]
    parts.append(text(axes.left, axes.height - 12, across, fill=FAINT))
    parts.append(text(axes.left, axes.top - 14, up, fill=FAINT))
    for n, (color, line) in enumerate(zip(COLORS, series.values(), strict=False)):
        places = [axes.at(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        style = {"fill": "none", "stroke": color, "stroke_width": 2.5}
        dash = {"stroke_dasharray": "6 5"} if n == 1 else {}
        parts.append(shape("polyline", points=path, **style, **dash))
        parts += [shape("circle", cx=x, cy=y, r=5 - n, fill=color) for x, y in places]
    return picture(axes.height, title, parts)


WIDEST = 44
"""Units that a label below the axis takes; one that would touch the last is left out."""


@dataclass(frozen=True)
class _Axes:
    points: Points
    left: int = 64
    right: int = 24
    top: int = 100
    bottom: int = 58
    height: int = 390

    def at(self, x: float, y: float) -> tuple[float, float]:
        xs, ys = [p[0] for p in self.points], [math.log10(p[1]) for p in self.points]
        along = (x - min(xs)) / (max(xs) - min(xs))
        upward = (math.log10(y) - min(ys)) / (max(ys) - min(ys))
        high = self.height - self.top - self.bottom
        wide = WIDTH - self.left - self.right
        return self.left + along * wide, self.height - self.bottom - upward * high

    def drawn(self) -> Iterable[str]:
        xs, ys = zip(*self.points, strict=True)
        for y in _round_numbers(min(ys), max(ys)):
            level = self.at(xs[0], y)[1]
            path = f"M{self.left} {level:.1f}H{WIDTH - self.right}"
            yield shape("path", d=path, stroke=GRID)
            yield text(self.left - 8, level + 4, _tick(y), "end", FAINT)
        written = -math.inf
        for x in sorted(set(xs)):
            place = self.at(x, ys[0])[0]
            if place - written > WIDEST:
                yield text(place, self.height - self.bottom + 18, f"{x:g}", "middle", FAINT)
                written = place


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _round_numbers(low: float, high: float) -> list[float]:
    """Return round numbers from low to high: 1, 2 and 5 times powers of ten, or even steps."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**n for n in powers for m in (1, 2, 5) if low <= m * 10.0**n <= high]
    if len(found) > 2:
        return found if len(found) < 8 else [y for y in found if math.log10(y) % 1 == 0]
    steps = [m * 10.0**n for n in range(powers[0] - 3, powers[-1]) for m in (1, 2, 5)]
    step = next(s for s in steps if (high - low) / s < 6)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def flow(title: str, columns: Sequence[Sequence[str]]) -> str:
    """Columns of boxes; each column leads to the next."""
    gap, top, step = 46, 48, 52
    wide = (WIDTH - 40 - gap * (len(columns) - 1)) / len(columns)
    most = max(map(len, columns))
    middle = top + most * step / 2 - 6
    parts = []
    for n, column in enumerate(columns):
        x = 20 + n * (wide + gap)
        color = COLORS[0] if n in (0, len(columns) - 1) else FAINT
        for m, words in enumerate(column):
            y = top + (most - len(column)) * step / 2 + m * step
            style = {"rx": 6, "fill_opacity": 0.09, "stroke": color}
            parts.append(box(x, y, (wide, 40), color, **style))
            parts += _centered(x + wide / 2, y + 25, words.split("\n"))
        if n:
            arrow = f"M{x - gap + 8:.1f} {middle:g}h{gap - 16}m-7 -5l7 5l-7 5"
            parts.append(shape("path", d=arrow, fill="none", stroke=INK, stroke_width=1.6))
    return picture(top + most * step + 10, title, parts)


def _centered(x: float, y: float, words: Sequence[str]) -> Iterable[str]:
    for n, line in enumerate(words):
        yield text(x, y + (n - (len(words) - 1) / 2) * 16, line, "middle")
