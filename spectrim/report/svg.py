"""SVG as text: elements with escaped attributes, numbers to a tenth, logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup, escape

_MOST_DECADES = 5


def element(tag: str, *inside: str, **attributes: str | float) -> Markup:
    """Return `<tag a="1">inside</tag>`; plain text inside is escaped.

    `class_` becomes `class`, and other underscores in names become hyphens.
    """
    written = "".join(
        f' {_name(key)}="{escape(_value(value))}"' for key, value in attributes.items()
    )
    content = "".join(escape(part) for part in inside)
    return Markup(f"<{tag}{written}>{content}</{tag}>")


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    written = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", points=written, class_=class_)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-") if key != "viewBox" else key


def _value(value: str | float) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Box:
    """The plotting area in the units of the figure."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Axes:
    """x from first to last, linear; y from 10^low to 10^high, logarithmic."""

    box: Box
    first: float
    last: float
    low: int
    high: int

    def x(self, value: float) -> float:
        share = (value - self.first) / max(self.last - self.first, 1e-12)
        return self.box.left + share * (self.box.right - self.box.left)

    def y(self, value: float) -> float:
        power = log10(max(value, 10.0**self.low))
        share = min((power - self.low) / (self.high - self.low), 1.0)
        return self.box.bottom - share * (self.box.bottom - self.box.top)

    def powers(self) -> range:
        """Return the decades to label, at most six."""
        return range(self.low, self.high + 1, max(1, ceil((self.high - self.low) / 5)))


def decades(values: Sequence[float], most: int = _MOST_DECADES) -> tuple[int, int]:
    """Return exponents that enclose the positive `values`, at most the top `most` decades."""
    positive = [value for value in values if value > 0]
    if not positive:
        return -3, 1
    low, high = floor(log10(min(positive))), ceil(log10(max(positive)))
    return max(low, high - most), max(high, low + 1)


def grid(axes: Axes, ticks: Mapping[float, str], titles: tuple[str, str]) -> Markup:
    """Return lines and labels of a figure that stands alone, without a style sheet.

    ticks: labels of x by their place; titles: of x and of y.
    """
    box, parts = axes.box, []
    for place, label in ticks.items():
        x = axes.x(place)
        parts.append(_rule(x, box.top, x, box.bottom))
        parts.append(text(x, box.bottom + 17, label, anchor="middle"))
    for power in range(axes.low, axes.high + 1):
        y = axes.y(10.0**power)
        parts.append(_rule(box.left, y, box.right, y))
        parts.append(text(box.left - 8, y + 4, f"{10.0**power:g}", anchor="end"))
    parts.append(text((box.left + box.right) / 2, box.bottom + 34, titles[0], anchor="middle"))
    turned = f"translate(18 {(box.top + box.bottom) / 2}) rotate(-90)"
    parts.append(element("text", titles[1], transform=turned, text_anchor="middle"))
    return Markup("").join(parts)


def _rule(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke="#ddd")


def document(title: str, size: tuple[float, float], inside: str) -> str:
    """Return a whole file of `size` (width, height); `inside` is SVG already."""
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="70" y="24" font-size="15">{escape(title)}</text>{inside}</svg>\n'
    )
