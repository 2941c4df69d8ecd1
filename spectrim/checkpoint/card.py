"""Write and read model cards: how to load a compressed model, and how it was made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.load import resolve
from spectrim.errors import InputError
from spectrim.models.kind import CAUSAL, ModelKind
from spectrim.version import install_words

CARD_FILE = "README.md"
_HERE = "."
_WHERE = "where this file is; elsewhere its path, or its name on the Hub"
_LOAD_LINE = "import spectrim  # lets transformers read this checkpoint"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DIRECTORIES = re.compile(r"(?<![\w./~-])(?:~?/|[A-Za-z]:\\)(?:[^/\\\s]+[/\\])*(?=[^/\\\s])")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class CardFacts:
    """The facts on the card of a model compressed by low rank.

    Attributes:
        kept: Fraction of the compressed layers' weights that is stored.
        figures: Rows of the table of measured metrics: what, base model, this model.
        measured_on: Text that they were measured on.
        predicted: Rows of the table of predictions: what, value.
        sizes: Bytes before and after, as text.
        ranks: By module name.
        name: What the load line names: a directory or a name on the Hub.
        datasets: Names on the Hub of the calibration's data sets.
        kind: Of the model, which says what loads it.
        removed_experts: Numbers of the experts that left, by module name.
    """

    base_model: str
    method: str
    layer_kind: str
    kept: float
    data: str
    figures: Sequence[tuple[str, str, str]] = ()
    measured_on: str = ""
    predicted: Sequence[tuple[str, str]] = ()
    sizes: tuple[str, str] | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    license: str | None = None
    command: str | None = None
    name: str = _HERE
    datasets: Sequence[str] = ()
    kind: ModelKind = CAUSAL
    removed_experts: Mapping[str, Sequence[int]] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """Return Markdown with YAML front matter; figures are shown as they are given."""
    parts = (
        front_matter(
            facts.base_model,
            facts.license,
            ["spectrim", "low-rank"],
            facts.datasets,
            facts.kind.tag,
        ),
        _opening(facts),
        _size(facts),
        _figures(facts),
        _predicted(facts),
        _ranks(facts),
        _experts(facts),
        _provenance(facts),
    )
    return "\n".join(part for part in parts if part)


def loading(name: str = _HERE, kind: ModelKind = CAUSAL) -> str:
    """Return the part of every card with the lines that load the model."""
    return f"""\
Load it where spectrim is installed ({install_words()}):

```python
{_LOAD_LINE}
from transformers import {kind.loader}, AutoTokenizer

{_name_line(name)}
model = {kind.loader}.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
```
"""


def card_beside(name: str) -> str | None:
    """Return the card of ours in the directory or Hub repository `name`, or None."""
    text = _card_in(name) if name else None
    return text if text is not None and _LOAD_LINE in text else None


def made_card(
    base: str, config: SpectrimConfig, name: str = _HERE, kind: ModelKind = CAUSAL
) -> str:
    """Return a card from what a compressed model knows of itself.

    base: where it was loaded from. name: of the directory or Hub repository to be.
    """
    plan = config.provenance.get("plan") or {}
    loss = plan.get("predicted_loss")
    return model_card(
        CardFacts(
            base_model=base or "a model",
            method=plan.get("method", "unknown"),
            layer_kind=plan.get("layer", "unknown"),
            kept=plan.get("kept", math.nan),
            data=str(_source_of(plan)),
            predicted=[] if loss is None else [(predicted_loss(kind), f"{loss:+.4f}")],
            ranks={n: entry["rank"] for n, entry in config.layers.items() if "rank" in entry},
            license=license_of(base) if base else None,
            name=name,
            kind=kind,
            removed_experts={n: e["removed"] for n, e in config.removed_experts.items()},
        )
    )


def predicted_loss(kind: ModelKind) -> str:
    """Return the name of a predicted loss in a table."""
    return f"loss increase, {kind.units}"


def _source_of(plan: Mapping[str, Any]) -> Any:
    data = (plan.get("provenance") or {}).get("data")
    return data.get("source", "unknown") if isinstance(data, Mapping) else "unknown"


def dense_card(compressed: str) -> str:
    """Return the card of a dense export: that of `compressed`, loaded without spectrim.

    What was measured stays true; the size is that of the original again.
    """
    text = card_beside(compressed) or f"# {shown_name(compressed)}\n\n{loading()}"
    head, _, rest = text.partition(f"{_LOAD_LINE}\n")
    start = head[: head.rindex("Load it where")]
    smaller = "but by the experts that left, " if "\n## Experts\n" in rest else ""
    title = (
        "The factors of a compressed model, multiplied back into dense weights: nothing is "
        f"smaller than in\nthe original, {smaller}and transformers alone loads it."
        "\n\n```python\n"
    )
    body = re.sub(r"## Size\n.*?(?=## )", "", rest, flags=re.S)
    return (start + title + body).replace("- low-rank\n", "")


def with_name(card: str, name: str) -> str:
    """Return a card whose load line names `name`."""
    return re.sub(r'^name = "[^"\n]*"  # .*$', lambda match: _name_line(name), card, flags=re.M)


def _name_line(name: str) -> str:
    return f'name = "{name}"  # {_WHERE if name == _HERE else "its name on the Hub"}'


def front_matter(
    base_model: str,
    license: str | None,
    tags: list[str],
    datasets: Sequence[str] = (),
    task: str = CAUSAL.tag,
) -> str:
    """Return the YAML block; a directory, which the Hub would refuse, is no `base_model`."""
    data = ModelCardData(
        base_model=hub_name(base_model),
        datasets=list(datasets) or None,
        license=license,
        library_name="transformers",
        pipeline_tag=task,
        tags=tags,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def hub_name(name: str) -> str | None:
    """Return `name` if it is one of the Hub, and no directory here."""
    try:
        here = isinstance(resolve(name), Path)
    except InputError:
        here = False
    return name if _HUB_NAME.fullmatch(name) and not here else None


def shown_name(base_model: str) -> str:
    """Return a name of the Hub, or the last part of a directory's, for a title."""
    return hub_name(base_model) or Path(base_model).name or base_model


def without_directories(text: str) -> str:
    """Return a text in which an absolute path is the name of its file: cards are published."""
    return _DIRECTORIES.sub("", text)


def license_of(name: str) -> str | None:
    """Return the license that a model's own card states, in its directory or on the Hub.

    None where there is no card, or it states none: a long run must not end on this.
    """
    text = _card_in(name)
    return None if text is None else stated_license(text)


def _card_in(name: str) -> str | None:
    """Return the README.md of a directory or Hub repository, or None."""
    try:
        source = resolve(name)
        path = (
            source / CARD_FILE
            if isinstance(source, Path)
            else Path(hf_hub_download(source, CARD_FILE))
        )
        return path.read_text(encoding="utf-8")
    except (InputError, OSError, ValueError, HfHubHTTPError):
        return None


def stated_license(card: str) -> str | None:
    """Return the license in the front matter of a card's text."""
    if not card.lstrip().startswith("---"):
        return None
    try:
        stated = ModelCard(card, ignore_metadata_errors=True).data.get("license")
    except (yaml.YAMLError, ValueError, TypeError):
        return None
    return stated if isinstance(stated, str) else None


def escape_markdown(text: str) -> str:
    """Return `text` on one line, with the characters that Markdown reads made literal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MARKDOWN.sub(lambda match: "\\" + match[0], line)


def _opening(facts: CardFacts) -> str:
    return f"""\
# {escape_markdown(shown_name(facts.base_model))}, {_removed(facts)}

The linear layers of {_link(facts.base_model)} are stored as `{facts.layer_kind}` layers
(`{facts.method}`).

{loading(facts.name, facts.kind)}"""


def _removed(facts: CardFacts) -> str:
    if math.isnan(facts.kept):
        return "compressed"
    return f"{1 - facts.kept:.0%} of its linear weights removed"


def _link(base_model: str) -> str:
    """Return a link for a name of the Hub; a directory's name stays text."""
    shown = escape_markdown(shown_name(base_model))
    if hub_name(base_model):
        return f"[{shown}](https://huggingface.co/{base_model})"
    return shown


def _size(facts: CardFacts) -> str:
    if facts.sizes is None:
        return ""
    rows = f"| {facts.sizes[0]} | {facts.sizes[1]} |"
    return "\n".join(["## Size", "", "| base model | this model |", "|---|---|", rows, ""])


def _figures(facts: CardFacts) -> str:
    if not facts.figures:
        return ""
    rows = [f"| {' | '.join(map(escape_markdown, row))} |" for row in facts.figures]
    measured_on = escape_markdown(without_directories(facts.measured_on))
    on = [f"On {measured_on}.", ""] if measured_on else []
    head = ["## Measured", "", *on, "| | base model | this model |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _predicted(facts: CardFacts) -> str:
    if not facts.predicted:
        return ""
    rows = [f"| {' | '.join(map(escape_markdown, row))} |" for row in facts.predicted]
    head = ["## Predicted", "", "| | this model |", "|---|---|"]
    return "\n".join([*head, *rows, ""])


def _ranks(facts: CardFacts) -> str:
    """Return the least, median and largest rank by the last part of the layers' names."""
    if not facts.ranks:
        return ""
    groups: dict[str, list[int]] = {}
    for name, rank in facts.ranks.items():
        last = [part for part in name.split(".") if not part.isdigit()][-1]
        groups.setdefault(last, []).append(rank)
    rows = []
    for last, ranks in groups.items():
        low, middle, high = min(ranks), sorted(ranks)[len(ranks) // 2], max(ranks)
        rows.append(f"| `{last}` | {len(ranks)} | {low} | {middle} | {high} |")
    head = "| layer | count | min | median | max |\n|---|---|---|---|---|"
    return "\n".join(["## Ranks", "", head, *rows, ""])


def _experts(facts: CardFacts) -> str:
    """Return the experts that the routers no longer choose, by block."""
    if not facts.removed_experts:
        return ""
    rows = [
        f"| `{name}` | {', '.join(map(str, removed))} |"
        for name, removed in facts.removed_experts.items()
    ]
    head = "| experts of | removed |\n|---|---|"
    return "\n".join(["## Experts", "", head, *rows, ""])


def _provenance(facts: CardFacts) -> str:
    lines = ["## How it was made", ""]
    lines += [f"Calibration data: {escape_markdown(without_directories(facts.data))}.", ""]
    if facts.command:
        lines += ["```", facts.command, "```", ""]
    lines += ["Recipe, ranks and versions are in `config.json` under `quantization_config`."]
    return "\n".join([*lines, ""])
