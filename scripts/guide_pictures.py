"""Draw the picture of every guide, and of the README, from the tables of the documentation.

    python scripts/guide_pictures.py           # writes docs/pictures/*.svg

A chart reads its numbers from the table in its page, so a new measurement needs no drawing; a test
holds that the files are what this draws.
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
INK, FAINT = "#1f2430", "#5b6270"
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+(?:e-?\d+)?")


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[list[str]]

    def labels(self, *columns: str) -> list[str]:
        places = [self.head.index(column) for column in columns]
        return [", ".join(plain(row[n]) for n in places if plain(row[n])) for row in self.rows]

    def numbers(self, column: str) -> list[float]:
        """The first number of each cell."""
        place = self.head.index(column)
        found = [_NUMBER.search(plain(row[place])) for row in self.rows]
        return [float(match.group().replace(",", "")) if match else math.nan for match in found]

    def where(self, test: Callable[[list[str]], bool]) -> Table:
        return Table(self.head, [row for row in self.rows if test(row)])


def plain(cell: str) -> str:
    return re.sub(r"[`*]", "", cell).strip()


def table(page: str, *columns: str, number: int = 0) -> Table:
    """Return a table of a page of docs/ that has these columns, the first unless told."""
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", (DOCS / page).read_text(encoding="utf-8"))
    split = [[line.strip("|\n").split("|") for line in block.splitlines()] for block in blocks]
    tables = [Table([plain(c) for c in t[0]], [[c.strip() for c in r] for r in t[2:]]) for t in split]
    return [found for found in tables if set(columns) <= set(found.head)][number]


def picture(height: float, title: str, parts: Iterable[str]) -> str:
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height:g}" rx="6" fill="#fff"/>',
            text(20, 27, title, weight=600),
            *parts,
            "</svg>\n",
        )
    )


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = INK, weight: int = 400) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def legend(names: Sequence[str], y: float) -> Iterable[str]:
    x = 20.0
    for name, color in zip(names, COLORS, strict=False):
        yield f'<rect x="{x:g}" y="{y - 10:g}" width="11" height="11" rx="2" fill="{color}"/>'
        yield text(x + 16, y, name, fill=FAINT)
        x += 32 + 7.0 * len(name)


def bars(title: str, labels: Sequence[str], series: dict[str, list[float]], log: bool = False) -> str:
    """Horizontal bars from zero, or with `log` from the power of ten below the smallest."""
    left, right, thick = 262, 70, 13
    values = [v for column in series.values() for v in column if not math.isnan(v)]
    low = 10 ** math.floor(math.log10(min(values) * 0.999)) if log else 0.0
    place = math.log10 if log else float

    def length(value: float) -> float:
        share = (place(value) - place(low)) / (place(max(values)) - place(low)) if log else value / max(values)
        return share * (WIDTH - left - right)

    parts = list(legend(list(series), 50)) if len(series) > 1 else []
    y = 68.0 if len(series) > 1 else 46.0
    for n, label in enumerate(labels):
        parts.append(text(left - 10, y + thick * len(series) / 2 + 4, label, "end"))
        for color, column in zip(COLORS, series.values(), strict=False):
            if not math.isnan(column[n]):
                wide = max(length(column[n]), 1.0)
                parts.append(f'<rect x="{left}" y="{y:g}" width="{wide:.1f}" height="{thick - 2}" fill="{color}"/>')
                parts.append(text(left + wide + 5, y + 10, f"{column[n]:,g}", fill=FAINT))
            y += thick
        y += 8
    return picture(y + 10, title, parts)


def lines(title: str, across: str, series: dict[str, list[tuple[float, float]]], up: str) -> str:
    """Lines through points; the upward axis is logarithmic."""
    left, right, top, bottom, height = 64, 24, 74, 48, 360
    points = [point for line in series.values() for point in line]
    xs, ys = [p[0] for p in points], [math.log10(p[1]) for p in points]

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = (point[0] - min(xs)) / (max(xs) - min(xs))
        y = (math.log10(point[1]) - min(ys)) / (max(ys) - min(ys))
        return left + x * (WIDTH - left - right), height - bottom - y * (height - top - bottom)

    parts = [*legend(list(series), 50), text(left, height - 12, across, fill=FAINT)]
    parts.append(text(WIDTH - right, 50, up, "end", FAINT))
    for x in sorted(set(xs)):
        place = at((x, 10 ** min(ys)))[0]
        parts.append(text(place, height - bottom + 18, f"{x:g}", "middle", FAINT))
    for y in sorted({min(ys), (min(ys) + max(ys)) / 2, max(ys)}):
        level = at((min(xs), 10**y))[1]
        parts.append(f'<path d="M{left} {level:.1f}H{WIDTH - right}" stroke="#dde1e7"/>')
        parts.append(text(left - 8, level + 4, f"{10**y:.3g}", "end", FAINT))
    for n, line in enumerate(series.values()):
        places = [at(point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="6 5"' if n == 1 else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[n]}" stroke-width="2.5"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 - n}" fill="{COLORS[n]}"/>' for x, y in places]
    return picture(height, title, parts)


def flow(title: str, columns: Sequence[Sequence[str]]) -> str:
    """Columns of boxes; every box of a column leads to the next column."""
    gap, top, tall, space = 46, 48, 40, 12
    wide = (WIDTH - 40 - gap * (len(columns) - 1)) / len(columns)
    most = max(map(len, columns))
    height = top + most * (tall + space) + 10
    parts = []
    for n, column in enumerate(columns):
        x = 20 + n * (wide + gap)
        first = top + (most - len(column)) * (tall + space) / 2
        for m, words in enumerate(column):
            y = first + m * (tall + space)
            color = COLORS[0] if n in (0, len(columns) - 1) else FAINT
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall}" rx="6" '
                f'fill="{color}" fill-opacity=".09" stroke="{color}"/>'
            )
            half = words.split("\n")
            for k, line in enumerate(half):
                parts.append(text(x + wide / 2, y + tall / 2 + 5 + (k - (len(half) - 1) / 2) * 16, line, "middle"))
        if n + 1 < len(columns):
            middle = top + most * (tall + space) / 2 - space / 2
            start = x + wide + 8
            parts.append(f'<path d="M{start:.1f} {middle:.1f}h{gap - 18}m-7 -5l7 5l-7 5" fill="none" stroke="{INK}" stroke-width="1.6"/>')
    return picture(height, title, parts)


def obd_or_bsi() -> str:
    found = table("results.md", "accuracy", "2x", "6x", "seconds")
    series = {size: found.numbers(size) for size in ("4x", "6x")}
    return bars("Exact answers to word problems, %, by how much smaller the layers are", found.labels("accuracy"), series)


def elastic() -> str:
    found = table("elastic.md", "budget", "separate", "file", number=2)
    budgets = found.numbers("budget")
    series = {
        f"{name}": list(zip(budgets, found.numbers(column), strict=True))
        for name, column in {"one model per size": "separate", "one elastic file": "file"}.items()
    }
    return lines("The bundled model at any size: one file loses nothing", "kept share of the layers' weights", series, "perplexity")


def adapters() -> str:
    found = table("adapters.md", "method", "loss", "old_loss")
    return bars(
        "After 48 steps on a new text: its loss, and that of the old text, nats",
        found.labels("method"),
        {"new text (5.245 before)": found.numbers("loss"), "old text (2.203 before)": found.numbers("old_loss")},
    )


def calibration_text() -> str:
    found = table("calibration_text.md", "rows", "common text", "rare text")
    return bars("Predicted loss on a mixture with 5% of another text, nats", [label.partition(":")[0] for label in found.labels("rows")], {"mixture": found.numbers("mixture")})


def speed() -> str:
    found = table("speed.md", "keep", "layer", "prefill, fused", "decode, fused")
    series = {"prompt, fused": found.numbers("prefill, fused"), "one token, fused": found.numbers("decode, fused")}
    return bars("Speed against the dense model (1 = as fast), by kept share", found.labels("keep", "layer"), series)


def scaling() -> str:
    found = table("scaling.md", "stage", "CPU seconds", "peak so far")
    return bars("Resident memory of a streamed compression at the end of each stage, MiB", found.labels("stage"), {"peak": found.numbers("peak so far")})


def training() -> str:
    found = table("training.md", "optimizer", "loss (rate)", "tokens to")
    return bars("Loss of a small Llama after equal tokens, nats", found.labels("optimizer"), {"loss": found.numbers("loss (rate)")})


def estimators() -> str:
    better = ("AUROC", "accuracy", "cosine", "rank correlation", "radius")
    found = table("estimators.md", "method", "metric", "own").where(
        lambda row: any(word in row[2] for word in better)
    )
    series = {"own": found.numbers("own"), "baseline": found.numbers("its result")}
    return bars("More is better: each estimator and its baseline", [label.partition(" (")[0] for label in found.labels("method", "metric")], series)


def quantizing() -> str:
    found = table("quantizing.md", "stored as", "rtn").where(lambda row: "corrections" not in row[1])
    names = ("rtn", "gptq, one-sided", "gptq, two-sided")
    return bars("Loss increase by storage of the weights, nats (logarithmic)", found.labels("stored as", "share")[:5], {name: found.numbers(name)[:5] for name in names}, log=True)


def ecosystem() -> str:
    found = table("ecosystem.md", "share", "plain bits", "low rank, rtn")
    shares = found.numbers("share")
    columns = {"plain bits": "plain bits", "low rank in 8 or 4 bits": "low rank, rtn", "low rank in bfloat16": "low rank, bfloat16"}
    series = {
        name: [(s, float(re.findall(r"[\d.,]+", plain(row[found.head.index(c)]))[-1].replace(",", ""))) for s, row in zip(shares, found.rows, strict=True) if re.search(r"\d", row[found.head.index(c)])]
        for name, c in columns.items()
    }
    return lines("Perplexity by share of the bytes: fewer bits first, then both", "share of the bytes in 16 bits", series, "perplexity, logarithmic")


def nn() -> str:
    found = table("nn.md", "method, metric", "own", "baseline").where(lambda row: "sup error" in row[0])
    series = {"perturb then diagonalize": found.numbers("own"), "S4D": [float(row[3].split()[-1]) for row in found.rows]}
    return bars("Largest error of the transfer function of HiPPO (logarithmic)", found.labels("data"), series, log=True)


def contributing() -> str:
    """The levels of the package as the tree of the README has them."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The code")[2]
    levels: dict[str, list[str]] = {}
    for room, level in re.findall(r"^  (\w+)(?:/|\.py) +(\d)  ", tree, re.M):
        levels.setdefault(level, []).append(room)
    top, step = 44, 31
    parts = []
    for n, (level, rooms) in enumerate(sorted(levels.items(), reverse=True)):
        y = top + n * step
        parts.append(f'<rect x="20" y="{y}" width="{WIDTH - 40}" height="{step - 5}" rx="5" fill="{COLORS[0]}" fill-opacity="{0.05 + 0.02 * (len(levels) - n):.2f}"/>')
        parts.append(text(34, y + 18, level, fill=FAINT))
        parts.append(text(62, y + 18, "   ".join(rooms)))
    return picture(top + len(levels) * step + 12, "Nine levels: a package imports lower ones only", parts)


def smollm2() -> str:
    """The first picture of the README."""
    found = table("results.md", "recipe", "keep", "perplexity", "file")
    points = list(zip(found.labels("recipe"), found.numbers("keep"), found.numbers("perplexity"), strict=True))
    dense = [(keep, value) for name, keep, value in points if name == "dense"]
    series = {
        name: [(keep, value) for label, keep, value in points if label == name] for name in ("default", "OBD-LLM, uniform", "SVD-LLM, uniform")
    }
    series = {name: sorted(dense + line) for name, line in series.items()}
    return lines("SmolLM2-135M on WikiText-2, nothing trained: less is better", "kept share of the layers' weights", series, "perplexity, logarithmic")


FLOWS = {
    "report": ("What a result's page is made of", (("OUT/config.json\nranks", "spectrim_plan.yaml\ncurves", "evaluation\nmeasured loss"), ("spectrim report",), ("one HTML file:\nsizes, curve", "map of ranks", "layers by loss"))),
    "inspect": ("What each reading needs", (("weights", "TEXT", "calibration"), ("spectrim inspect",), ("effective rank, tails", "hidden states", "errors and drift"))),
    "serving": ("From a compressed checkpoint to a server", (("OUT",), ("spectrim activate", "export --onnx", "export --dense"), ("vLLM, transformers serve", "ONNX Runtime", "llama.cpp, CTranslate2"))),
    "add_a_method": ("One file is all of it", (("decompositions/\nmy_method.py",), ("registry",), ("spectrim ls, --method", "contract tests", "page of the site", "provenance"))),
}  # fmt: skip
CHARTS = (smollm2, obd_or_bsi, elastic, adapters, calibration_text, speed, scaling, training, estimators, quantizing, ecosystem, nn, contributing)


def pictures() -> dict[str, str]:
    """Return the SVG of each guide by its name."""
    charts = {chart.__name__: chart() for chart in CHARTS}
    return charts | {name: flow(*of) for name, of in FLOWS.items()}


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")
