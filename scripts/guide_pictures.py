"""Draw the picture of every guide, and of the README, from the tables of the documentation.

    python scripts/guide_pictures.py           # writes docs/pictures/*.svg

A chart reads its numbers from the table in its page, so a new measurement needs no drawing; a
test holds that the files are what this draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from charts import COLORS, FAINT, WIDTH, Points, bars, box, flow, lines, picture, text

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
HIGHER_IS_BETTER = ("AUROC", "accuracy", "cosine", "rank correlation", "radius")
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+(?:e-?\d+)?")


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
