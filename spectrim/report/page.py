"""One self-contained HTML page from the facts: no network, no other file.

Figures and tables are drawn here; the script only updates them. The page's own policy forbids
everything but its style and its one script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from spectrim.checkpoint.card import shown_name, without_directories
from spectrim.layers import layer_class
from spectrim.report import formatting
from spectrim.report.curve_figure import axes_of, bytes_at, curve_figure
from spectrim.report.facts import Continuation, LayerFacts, ReportData
from spectrim.report.pruning_figure import pruning_figure
from spectrim.report.rank_map import rank_map, shared_start
from spectrim.report.spectrum_figure import LOWER, UPPER, spectrum_figure

_FILTERS = {"size": formatting.size, "loss": formatting.loss, "percent": formatting.percent}


def report_page(facts: ReportData, live: Mapping[str, Any] | None = None) -> str:
    """Return the HTML page. live: the script's settings for requesting other plans."""
    facts = _published(facts)
    panels = [layer for layer in facts.layers if layer.ranks]
    worst = max(panels, key=lambda layer: layer.loss or 0.0, default=None)
    script = Markup(_source("page.js") + (_source("live.js") if live else ""))
    return _template().render(
        facts=facts,
        live=live,
        curve=curve_figure(facts) if facts.curve or facts.result is not None else None,
        prunings=pruning_figure(facts) if facts.prunings else None,
        map=rank_map(facts.layers),
        panels=[(layer, spectrum_figure(layer, facts.units)) for layer in panels],
        opened=worst.name if worst else "",
        figures=headline(facts),
        most=_most_bytes(facts),
        dense_bytes=sum(part.dense for part in facts.parts),
        stored_bytes=sum(part.stored for part in facts.parts),
        texts=[(text, *_forked(text)) for text in facts.texts],
        numbers=script_numbers(facts, live),
        style=Markup(_source("page.css")),
        script=script,
        script_hash=_hash(script),
    )


def _published(facts: ReportData) -> ReportData:
    """Return the facts without directories of this machine: the page is published."""
    source = facts.data.get("source")
    data = {"source": without_directories(source)} if isinstance(source, str) else {}
    return replace(
        facts,
        model=shown_name(facts.model),
        result_from=without_directories(facts.result_from),
        data={**facts.data, **data},
    )


def _most_bytes(facts: ReportData) -> int:
    """Return the bytes of the largest part, the width of the bars."""
    return max((max(part.dense, part.stored) for part in facts.parts), default=1)


def headline(facts: ReportData) -> list[tuple[str, str, str]]:
    """Return the headline figures as (name, value, remark)."""
    found = [("layer weights kept", formatting.percent(facts.kept), _of_budget(facts))]
    dense, stored = (sum(getattr(p, n) for p in facts.parts) for n in ("dense", "stored"))
    if dense:
        found.append(
            (
                "size",
                formatting.size(stored),
                f"{formatting.percent(stored / dense)} of {formatting.size(dense)}",
            )
        )
    if facts.experts:
        removed = sum(map(len, facts.experts.values()))
        found.append(("experts removed", str(removed), f"from {len(facts.experts)} blocks"))
    if facts.predicted_loss is not None:
        when = " before refinement" if facts.refined else ""
        found.append((f"predicted loss increase{when}", *_priced(facts, facts.predicted_loss)))
    if facts.result is not None:
        found.append(("KL divergence, measured", *_priced(facts, facts.result)))
    if facts.loss_increase is not None and facts.original_perplexity is not None:
        found.append(_perplexity(facts.original_perplexity, facts.loss_increase))
    if facts.accuracy is not None:
        before, after = map(formatting.percent, facts.accuracy)
        found.append((f"accuracy of the {facts.of_kind.predicts}", after, f"from {before}"))
    if facts.score is not None:
        found.append(("compression error", f"\u00d7 {facts.score:.2f}", "of its calibration's"))
    if facts.agreement is not None:
        same = f"same {facts.of_kind.predicts}"
        found.append((same, formatting.percent(facts.agreement), "as the original"))
    return found


def _perplexity(before: float, increase: float) -> tuple[str, str, str]:
    """Return the perplexity of the text's own tokens, measured on both models."""
    after = before * math.exp(min(increase, 20.0))
    ratio = formatting.ratio(increase).replace("x", "\u00d7 ")
    return "perplexity, measured", f"{after:.3g}", f"{ratio}, from {before:.3g}"


def _of_budget(facts: ReportData) -> str:
    dense = sum(layer.rank is None for layer in facts.layers)
    return f"{dense} of {len(facts.layers)} layers left dense"


def _priced(facts: ReportData, nats: float) -> tuple[str, str]:
    if not facts.of_kind.of_tokens:
        return f"+{formatting.loss(nats)}", facts.of_kind.units
    ratio = math.exp(min(nats, 20.0))
    shown = f"{ratio:.3f}" if ratio < 1.1 else f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"
    return f"+{formatting.loss(nats)}", f"{facts.of_kind.units}, perplexity \u00d7 {shown}"


def _forked(text: Continuation) -> tuple[str, str, str]:
    """Split two continuations into their common start, in whole words, and both rests."""
    same = shared_start([text.dense, text.compressed])
    if same not in (text.dense, text.compressed):
        same = same[: 1 + max(same.rfind(" "), same.rfind("\n"))]
    return same, text.dense[len(same) :], text.compressed[len(same) :]


def script_numbers(facts: ReportData, live: Mapping[str, Any] | None) -> Markup:
    """Return the script's numbers, as JSON that cannot end its element."""
    axes = axes_of(facts)
    values = {
        "curve": [[p.kept, p.loss] for p in facts.curve],
        "bytes": [bytes_at(facts, 0), bytes_at(facts, 1)] if facts.parts else None,
        "axes": {**vars(axes.box), "first": axes.first, "low": axes.low, "high": axes.high},
        "chosen": facts.kept,
        "layers": {
            layer.name: {
                "ranks": layer.ranks,
                "losses": layer.losses,
                "costs": [_cost(layer, rank) for rank in layer.ranks],
            }
            for layer in facts.layers
            if layer.ranks
        },
        "plot": {"left": UPPER.left, "right": LOWER.right},
        "live": live and {**live, "most": _most_bytes(facts)},
    }
    text = json.dumps(values, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _cost(layer: LayerFacts, rank: int) -> float:
    """Return the stored weights at a rank, relative to the dense layer."""
    return layer_class(layer.kind).cost(*layer.shape, rank) / math.prod(layer.shape)


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(_FILTERS)
    return environment.from_string(_source("page.html.j2"))


@cache
def _source(name: str) -> str:
    return files("spectrim.report").joinpath("template", name).read_text(encoding="utf-8")
