"""Plans and curves as a line of text, and as a table for notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape


def plan_line(method: str, kept: float, loss: float | None, factored: int, layers: int) -> str:
    """Return `obd, 80% kept, +0.046 nats, 27 of 28 layers`."""
    nats = [] if loss is None else [f"{loss:+.3g} nats"]
    return ", ".join([method, f"{kept:.0%} kept", *nats, f"{factored} of {layers} layers"])


def ratio_of(loss: float) -> str:
    """Return the ratio of perplexities of a loss increase, as text."""
    return f"x{math.exp(min(loss, 20.0)):.3f}"


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; every cell is escaped."""
    lines = [f"<table><caption>{escape(title)}</caption>", _row("th", head)]
    return "".join([*lines, *(_row("td", row) for row in rows), "</table>"])


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
