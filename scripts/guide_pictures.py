"""Draw the picture of every guide, and of the README, from the tables of the documentation.

    python scripts/guide_pictures.py           # writes docs/pictures/*.svg

A chart reads its numbers from the table in its page, so a new measurement needs no drawing; a
test holds that the files are what this draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
WIDTH = 720
COLORS = ("#3f51b5", "#e07a1f", "#2a9d6f", "#8a8f98")
INK, FAINT, GRID = "#1f2430", "#5b6270", "#dde1e7"
HIGHER_IS_BETTER = ("AUROC", "accuracy", "cosine", "rank correlation", "radius")
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+(?:e-?\d+)?")
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[list[str]]

    def cells(self, column: str) -> list[str]:
        return [row[self.head.index(column)] for row in self.rows]

    def labels(self, *columns: str) -> list[str]:
        cells = zip(*(self.cells(column) for column in columns), strict=True)
        return [", ".join(cell for cell in row if cell) for row in cells]

    def numbers(self, column: str, number: int = 0) -> list[float]:
        """The first number of each cell, or another one; NaN where there is none."""
        found = [_NUMBER.findall(cell) for cell in self.cells(column)]
        return [float(each[number].replace(",", "")) if each else math.nan for each in found]

    def points(self, across: str, up: str, number: int = 0) -> Points:
        """Pairs of numbers, without those of cells that have none."""
        pairs = zip(self.numbers(across), self.numbers(up, number), strict=True)
        return [pair for pair in pairs if not math.isnan(pair[1])]

    def where(self, column: str, test: Callable[[str], bool]) -> Table:
        kept = zip(self.rows, self.cells(column), strict=True)
        return Table(self.head, [row for row, cell in kept if test(cell)])


def table(page: str, *columns: str, number: int = 0) -> Table:
    """Return a table of a page of docs/ that has these columns, the first unless told."""
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", (DOCS / page).read_text(encoding="utf-8"))
    found = [_parsed(block) for block in blocks if block.count("\n") > 1]
    return [each for each in found if set(columns) <= set(each.head)][number]


def _parsed(block: str) -> Table:
    lines = [line.strip("|\n").split("|") for line in block.splitlines()]
    head, _, *rows = [[re.sub(r"[`*]", "", cell).strip() for cell in line] for line in lines]
    return Table(head, rows)


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


def smollm2() -> str:
    """The first picture of the README."""
    found = table("results.md", "recipe", "keep", "perplexity", "file")
    dense = found.where("recipe", lambda name: name == "dense").points("keep", "perplexity")
    series = {
        name: found.where("recipe", lambda cell, name=name: cell == name)
        for name in ("default", "OBD-LLM, uniform", "SVD-LLM, uniform")
    }
    return lines(
        "SmolLM2-135M on WikiText-2, nothing trained (lower is better)",
        "kept share of the layers' weights",
        "perplexity, logarithmic",
        {name: sorted(dense + t.points("keep", "perplexity")) for name, t in series.items()},
    )


def obd_or_bsi() -> str:
    found = table("results.md", "accuracy", "2x", "6x", "seconds")
    return bars(
        "Exact answers to word problems, %, by how much smaller the layers are",
        found.labels("accuracy"),
        {size: found.numbers(size) for size in ("4x", "6x")},
    )


def elastic() -> str:
    found = table("elastic.md", "budget", "separate", "file", number=2)
    return lines(
        "The bundled model at any size: one file loses nothing",
        "kept share of the layers' weights",
        "perplexity, logarithmic",
        {
            "one model per size": found.points("budget", "separate"),
            "one elastic file": found.points("budget", "file"),
        },
    )


def adapters() -> str:
    found = table("adapters.md", "method", "loss", "old_loss")
    return bars(
        "After 48 steps on a new text: its loss, and that of the old text, nats",
        found.labels("method"),
        {"new text": found.numbers("loss"), "old text": found.numbers("old_loss")},
    )


def calibration_text() -> str:
    found = table("calibration_text.md", "rows", "common text", "mixture")
    return bars(
        "Predicted loss on a mixture with 5% of another text, nats",
        [label.partition(":")[0] for label in found.labels("rows")],
        {"mixture": found.numbers("mixture")},
    )


def speed() -> str:
    found = table("speed.md", "keep", "layer", "prefill, fused", "decode, fused")
    return bars(
        "Speed against the dense model (1 = as fast), by kept share",
        found.labels("keep", "layer"),
        {
            "prompt, fused": found.numbers("prefill, fused"),
            "one token, fused": found.numbers("decode, fused"),
        },
    )


def scaling() -> str:
    found = table("scaling.md", "stage", "CPU seconds", "peak so far")
    return bars(
        "Peak memory of a streamed compression, by stage, MiB",
        found.labels("stage"),
        {"peak": found.numbers("peak so far")},
    )


def training() -> str:
    found = table("training.md", "optimizer", "loss (rate)", "tokens to")
    return bars(
        "Loss of a small Llama after equal tokens, nats",
        found.labels("optimizer"),
        {"loss": found.numbers("loss (rate)")},
    )


def estimators() -> str:
    found = table("estimators.md", "method", "metric", "own").where(
        "metric", lambda cell: any(word in cell for word in HIGHER_IS_BETTER)
    )
    names = zip(found.cells("method"), found.cells("metric"), strict=True)
    return bars(
        "More is better: each estimator and its baseline",
        [f"{own.partition(',')[0]}, {metric.rpartition(' ')[2]}" for own, metric in names],
        {"own": found.numbers("own"), "baseline": found.numbers("its result")},
    )


def quantizing() -> str:
    found = table("quantizing.md", "stored as", "rtn").where(
        "stored as", lambda cell: "corrections" not in cell
    )
    names = ("rtn", "gptq, one-sided", "gptq, two-sided")
    return bars(
        "Loss increase by storage of the weights, nats (logarithmic)",
        [f"{cell} weights a group" for cell in found.cells("stored as")],
        {name: found.numbers(name) for name in names},
        log=True,
    )


def ecosystem() -> str:
    found = table("ecosystem.md", "share", "plain bits", "low rank, rtn")
    return lines(
        "Perplexity by share of the bytes: fewer bits first, then both",
        "share of the bytes in 16 bits",
        "perplexity, logarithmic",
        {
            "plain bits": found.points("share", "plain bits", -1),
            "low rank in 8 or 4 bits": found.points("share", "low rank, rtn", -1),
            "low rank in bfloat16": found.points("share", "low rank, bfloat16", -1),
        },
    )


def nn() -> str:
    found = table("nn.md", "method, metric", "own", "baseline").where(
        "method, metric", lambda cell: "sup error" in cell
    )
    return bars(
        "Largest error of the transfer function (logarithmic)",
        found.labels("data"),
        {
            "perturb then diagonalize": found.numbers("own"),
            "S4D": found.numbers("baseline", -1),
        },
        log=True,
    )


def contributing() -> str:
    """The levels of the package as the tree of the README has them."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The code")[2]
    levels: dict[str, list[str]] = {}
    for room, level in re.findall(r"^  (\w+)(?:/|\.py) +(\d)  ", tree, re.M):
        levels.setdefault(level, []).append(room)
    top, step = 44, 31
    parts = []
    for n, (level, rooms) in enumerate(sorted(levels.items(), reverse=True)):
        shade = 0.05 + 0.02 * (len(levels) - n)
        y = top + n * step
        parts.append(box(20, y, (WIDTH - 40, step - 5), COLORS[0], rx=5, fill_opacity=shade))
        parts.append(text(34, y + 18, level, fill=FAINT))
        parts.append(text(62, y + 18, ", ".join(rooms)))
    title = "Nine levels: a package imports lower ones only"
    return picture(top + len(levels) * step + 12, title, parts)


FLOWS = {
    "report": (
        "What the page of a result is made of",
        (
            ("config.json:\nranks", "spectrim_plan.yaml:\ncurves", "measured\nmetrics"),
            ("spectrim report",),
            ("one HTML file:\nsizes, curve", "map of ranks", "layers by loss"),
        ),
    ),
    "inspect": (
        "What each reading needs",
        (
            ("weights", "TEXT", "calibration"),
            ("spectrim inspect",),
            ("effective rank, tails", "hidden states", "errors and drift"),
        ),
    ),
    "experts": (
        "Whole experts under the budget of ranks",
        (
            ("one pass: tokens\nby expert",),
            ("price of removing\neach, in nats", "curves of ranks"),
            ("one plan",),
            ("fewer experts,\nrouter cut", "factors of those\nthat stay"),
        ),
    ),
    "other_models": (
        "Other losses, the same trip",
        (
            ("source, target", "text, label", "text"),
            ("T5, BART", "classifier", "vision-language\nmodel"),
            ("spectrim compress",),
            ("from_pretrained of\ntheir own classes",),
        ),
    ),
    "serving": (
        "From a compressed checkpoint to a server",
        (
            ("OUT",),
            ("spectrim activate", "export --onnx", "export --dense"),
            ("vLLM,\ntransformers serve", "ONNX Runtime", "llama.cpp, CTranslate2"),
        ),
    ),
    "add_a_method": (
        "One file is all of it",
        (
            ("decompositions/\nmy_method.py",),
            ("registry",),
            ("spectrim ls, --method", "contract tests", "page of the site", "provenance"),
        ),
    ),
}
CHARTS = (
    smollm2, obd_or_bsi, elastic, adapters, calibration_text, speed, scaling, training,
    estimators, quantizing, ecosystem, nn, contributing,
)  # fmt: skip


def pictures() -> dict[str, str]:
    """Return the SVG of each guide by its name."""
    charts = {chart.__name__: chart() for chart in CHARTS}
    return charts | {name: flow(*of) for name, of in FLOWS.items()}


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")
