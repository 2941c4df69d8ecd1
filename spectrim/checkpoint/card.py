"""The README.md of a compressed checkpoint: how to load it, what it is, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
"""What every card begins with."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class CardFacts:
    """`figures` are table rows (what, base model, this model); `kept` is the fraction of the
    compressed layers' weights that is left; `ranks` are by module name."""

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
    """Markdown with YAML front matter. Figures are shown as they are given."""
    parts = (
        _front_matter(facts),
        _opening(facts),
        _figures(facts),
        _ranks(facts),
        _making(facts),
    )
    return "\n".join(part for part in parts if part)


def _front_matter(facts: CardFacts) -> str:
    lines = ["---", f"base_model: {json.dumps(facts.base_model)}"]
    if facts.license:
        lines.append(f"license: {json.dumps(facts.license)}")
    lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    return "\n".join([*lines, "tags:", "- spectrim", "- low-rank", "---", ""])


def _opening(facts: CardFacts) -> str:
    return f"""\
{LOADING}
# {facts.base_model}, {facts.kept:.0%} of its linear weights kept

The linear layers of {_link(facts.base_model)} are replaced by layers of
kind `{facts.layer_kind}`, chosen by the method `{facts.method}`.
"""


def _link(base_model: str) -> str:
    """A link where the name is one of the Hub; a directory stays a name."""
    if _HUB_NAME.fullmatch(base_model):
        return f"[{base_model}](https://huggingface.co/{base_model})"
    return base_model


def _figures(facts: CardFacts) -> str:
    if not facts.figures:
        return ""
    rows = [
        f"| {_cell(what)} | {_cell(old)} | {_cell(new)} |" for what, old, new in facts.figures
    ]
    head = ["## Measured", "", "| | base model | this model |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _ranks(facts: CardFacts) -> str:
    """Smallest, middle and largest rank of each layer name's last part."""
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


def _making(facts: CardFacts) -> str:
    lines = ["## How it was made", "", f"Calibration data: {facts.data}.", ""]
    if facts.command:
        lines += ["```", facts.command, "```", ""]
    lines += ["Recipe, ranks and versions are in `config.json` under `quantization_config`."]
    return "\n".join([*lines, ""])
