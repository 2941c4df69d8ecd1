"""Console output: tables on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from spectrim.cli.help import definitions
from spectrim.cli.logging import set_log_level

if TYPE_CHECKING:
    from spectrim.planning import Plan, SizeLossPoint

_NUMBER = re.compile(
    r"-?|[+-]?(?:nan|inf)"
    r"|[x+-]?\d[\d,.:]*(?:e[+-]?\d+)?(?:%|\s?[kMGT]?i?B|\s?[mu]?s|/\d+|x\d+| of \d+)?"
)
"""A number with its unit, a ratio like x1.05 or 1/28, a shape, or an empty cell."""
_LABELS = {
    "kl_divergence": "KL divergence",
    "top1_agreement": "same next token",
    "predicted_tokens": "scored tokens",
    "per_document_perplexity": "perplexity per document",
    "median_document_perplexity": "median over documents",
}
OUTPUT = Console(highlight=False, soft_wrap=True)
NOTES = Console(stderr=True, highlight=False, soft_wrap=True)


def set_level(verbose: bool, quiet: bool) -> None:
    """Set the verbosity.

    quiet: no notes or progress; verbose: also the library's log, on standard error.
    """
    NOTES.quiet = quiet
    set_log_level(logging.INFO if verbose else logging.WARNING)


def print_result(plan: Plan, outcome: Mapping[str, float | None], json: bool) -> None:
    """Print the plan of a compressed model; as JSON with sizes and figures."""
    if json:
        as_json({"plan": plan.to_dict(), "result": dict(outcome)})
    else:
        plan_table(plan)


def result_line(text: str) -> None:
    """Print a line of the result on standard output."""
    OUTPUT.print(text, markup=False)


def note(text: str) -> None:
    NOTES.print(text, markup=False)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: numbers to the right, words whole, markup as written.

    A table too wide for the terminal is printed wide: a line that the terminal wraps can be
    read and copied, a name folded inside a cell cannot.
    """
    cells = [list(row) for row in rows]
    shown = Table(title=Text(title), title_justify="left", box=box.SQUARE)
    for number, name in enumerate(head):
        numeric = all(_NUMBER.fullmatch(row[number]) for row in cells)
        whole = number == 0 or not any(" " in row[number] for row in cells)
        shown.add_column(
            Text(name),
            justify="right" if numeric else "left",
            no_wrap=whole,
            min_width=max(len(row[number]) for row in [head, *cells]) if whole else None,
        )
    for row in cells:
        shown.add_row(*map(Text, row))
    least = Measurement.get(OUTPUT, OUTPUT.options, shown).minimum
    OUTPUT.print(shown, width=max(OUTPUT.width, least), crop=False, soft_wrap=False)


def definition_list(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names with the texts that explain them, in two columns."""
    print("\n".join([title, *definitions(rows), ""]))


def short_names(names: Sequence[str]) -> list[str]:
    """Return names of layers without the parents that all of them share."""
    parts = [name.split(".") for name in names]
    shared = 0
    for level in zip(*(part[:-1] for part in parts), strict=False):
        if len(parts) < 2 or len(set(level)) > 1:
            break
        shared += 1
    return [".".join(part[shared:]) for part in parts]


def as_json(values: Any) -> None:
    print(json.dumps(values, indent=1))


def plan_table(plan: Plan) -> None:
    from spectrim.report.formatting import percent

    table(
        "plan",
        ("method", "allocation", "layer", "kept", "removed", "dense layers", "predicted loss"),
        [
            (
                plan.method,
                plan.allocation,
                plan.layer,
                percent(plan.kept),
                percent(1 - plan.kept),
                f"{len(plan.layers) - len(plan.ranks)}/{len(plan.layers)}",
                "-" if plan.predicted_loss is None else f"{plan.predicted_loss:+.4f}",
            )
        ],
    )
    experts_table({n: (block.count, block.removed) for n, block in plan.experts.items()})


def experts_table(blocks: Mapping[str, tuple[int, Sequence[int]]]) -> None:
    """Print the experts that left, from (experts before, those removed) by block."""
    if not blocks:
        return
    rows = [
        (name, f"{count - len(removed)} of {count}", " ".join(map(str, removed)))
        for name, (count, removed) in blocks.items()
    ]
    table("experts", ("block", "left", "removed"), rows)


def curve_table(points: Sequence[SizeLossPoint], units: str) -> None:
    """Print size and predicted loss; of language models with the ratio of perplexities."""
    from spectrim.report.formatting import percent, ratio

    has_perplexity = units.endswith("token")
    title = f"predicted loss increase, {units}"
    heads = ["--budget", "removed", "loss increase"]
    rows = [
        [f"{p.budget:.2f}", percent(1 - p.kept), f"+{p.predicted_loss:.4f}"] for p in points
    ]
    if has_perplexity:
        title = f"predicted ratio of perplexities, and loss increase in {units}"
        heads.insert(2, "perplexity")
        for row, point in zip(rows, points, strict=True):
            row.insert(2, ratio(point.predicted_loss))
    table(title, heads, rows)


def figures_table(by_model: Mapping[str, Mapping[str, float | str]]) -> None:
    """Print one row per metric; texts are printed as they are."""
    names = list(dict.fromkeys(name for figures in by_model.values() for name in figures))
    table(
        "evaluation",
        ("metric", *by_model),
        [(_label(name), *(_figure(f.get(name)) for f in by_model.values())) for name in names],
    )


def _label(name: str) -> str:
    """Return the name of a metric as it is written: "KL divergence" for `kl_divergence`."""
    return _LABELS.get(name, name.replace("_", " "))


def _figure(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
