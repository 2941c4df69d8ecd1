"""Write and read model cards: how to load a compressed model, and how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from spectrim.checkpoint.load import resolve
from spectrim.errors import InputError

CARD_FILE = "README.md"
LOADING = """\
Load it after `pip install spectrim`; without the import transformers would start from
random weights:

```python
import spectrim  # lets transformers read this checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/or/name/of/this/model")
tokenizer = AutoTokenizer.from_pretrained("path/or/name/of/this/model")
```
"""
"""The beginning of every card."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class CardFacts:
    """The facts on the card of a model compressed by low rank.

    Attributes:
        kept: Fraction of the compressed layers' weights that is stored.
        figures: Rows of a table: what, base model, this model.
        ranks: By module name.
    """

    base_model: str
    method: str
    layer_kind: str
    kept: float
    data: str
    figures: Sequence[tuple[str, str, str]] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    license: str | None = None
    command: str | None = None


def model_card(facts: CardFacts) -> str:
    """Return Markdown with YAML front matter; figures are shown as they are given."""
    parts = (
        front_matter(facts.base_model, facts.license, ["spectrim", "low-rank"]),
        _opening(facts),
        _figures(facts),
        _ranks(facts),
        _provenance(facts),
    )
    return "\n".join(part for part in parts if part)


def front_matter(base_model: str, license: str | None, tags: list[str]) -> str:
    """Return the YAML block; a directory, which the Hub would refuse, is no `base_model`."""
    data = ModelCardData(
        base_model=base_model if _HUB_NAME.fullmatch(base_model) else None,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def license_of(name: str) -> str | None:
    """Return the license that a model's own card states, in its directory or on the Hub.

    None where there is no card, or it states none: a long run must not end on this.
    """
    try:
        source = resolve(name)
        path = (
            source / CARD_FILE
            if isinstance(source, Path)
            else Path(hf_hub_download(source, CARD_FILE))
        )
        return stated_license(path.read_text(encoding="utf-8"))
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
{LOADING}
# {escape_markdown(facts.base_model)}, {facts.kept:.0%} of its linear weights kept

The linear layers of {_link(facts.base_model)} are replaced by layers of
kind `{facts.layer_kind}`, chosen by the method `{facts.method}`.
"""


def _link(base_model: str) -> str:
    """Return a link for a name of the Hub; a directory stays text."""
    shown = escape_markdown(base_model)
    if _HUB_NAME.fullmatch(base_model):
        return f"[{shown}](https://huggingface.co/{base_model})"
    return shown


def _figures(facts: CardFacts) -> str:
    if not facts.figures:
        return ""
    rows = [f"| {' | '.join(map(escape_markdown, row))} |" for row in facts.figures]
    head = ["## Measured", "", "| | base model | this model |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _ranks(facts: CardFacts) -> str:
    """Return the lowest, middle and highest rank by the last part of the layers' names."""
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
    head = "| layer | how many | lowest | middle | highest |\n|---|---|---|---|---|"
    return "\n".join(["## Ranks", "", head, *rows, ""])


def _provenance(facts: CardFacts) -> str:
    lines = ["## How it was made", ""]
    lines += [f"Calibration data: {escape_markdown(facts.data)}.", ""]
    if facts.command:
        lines += ["```", facts.command, "```", ""]
    lines += ["Recipe, ranks and versions are in `config.json` under `quantization_config`."]
    return "\n".join([*lines, ""])
