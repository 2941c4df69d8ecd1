"""Write the README.md of compressed, quantized and fine-tuned checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrim.checkpoint import CardFacts, SpectrimConfig, model_card, resolve
from spectrim.checkpoint.card import (
    CARD_FILE,
    LOADING,
    escape_markdown,
    front_matter,
    license_of,
)
from spectrim.data import DEFAULT_TEXT
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Plan


def card_for(base: str, plan: Plan, recipe: Recipe) -> str:
    """Return the card of the model named `base`, compressed by `plan`."""
    figures = []
    refined = [f"refined by {step.name}" for step in recipe.refinement]
    steps = [plan.method, f"{plan.allocation} ranks", *_tables(recipe), *refined]
    if plan.predicted_loss is not None:
        predicted = f"+{plan.predicted_loss:.4f}"
        what = "predicted loss increase" + (" before refinement" if refined else "")
        figures.append((f"{what} (nats per token)", "0", predicted))
    card = model_card(
        CardFacts(
            base_model=base,
            method=", ".join(steps),
            layer_kind=plan.layer,
            kept=plan.kept,
            data=_data(recipe, plan.provenance),
            figures=figures,
            ranks=plan.ranks,
            license=license_of(base),
        )
    )
    return card + _sizes(recipe)


def quantization_card(base: str, config: SpectrimConfig, recipe: Recipe) -> str:
    """Return the card of a model of quantized layers; bytes are those of their weights."""
    facts = config.provenance["compensation"]
    entry = next(iter(config.layers.values()))
    options = ", ".join(f"{k} {v}" for k, v in entry["options"].items() if v != "")
    lines = [front_matter(base, license_of(base), ["spectrim"]), LOADING]
    lines += [f"# {escape_markdown(base)}, compressed by {facts['base']}", ""]
    stored = f"`{facts['base']}`" + (f" ({options})" if options else "")
    lines += [f"{len(config.layers)} linear layers are stored by {stored}."]
    if facts["path_bytes"]:
        lines += ["Low-rank corrections recover part of the error: method"]
        source = escape_markdown(_data(recipe, config.provenance))
        lines += [f"`{facts['method']}`, {facts['allocation']} ranks, from {source}."]
    lines += ["", "| | |", "|---|---|"]
    for key in ("dense_bytes", "base_bytes", "path_bytes"):
        lines.append(f"| {key.replace('_', ' ')} | {facts[key]:,} |")
    for key in ("predicted_loss_without_path", "predicted_loss"):
        if key in facts:
            what = key.replace("_", " ")
            lines.append(f"| {what}, nats per token | +{facts[key]:.4f} |")
    return "\n".join([*lines, ""])


def finetuning_card(model: str, entry: dict[str, Any]) -> str:
    """Return the card of `model` with a section on its training.

    Args:
        entry: The last one of `provenance["refinement"]`.
    """
    options = ", ".join(f"{k} {v}" for k, v in entry["options"].items() if v is not None)
    data = entry["data"]
    lines = ["## Fine-tuned", ""]
    lines += [f"On {escape_markdown(data['source'])}, {data['sequences']} rows,"]
    lines += [f"by `{entry['name']}` ({options})."]
    lines += ["", "| training loss | first tenth | last tenth |", "|---|---|---|"]
    lines += [f"| {what} | {a:.4f} | {b:.4f} |" for what, (a, b) in entry["losses"].items()]
    return "\n".join([_card_before(model).rstrip(), "", *lines, ""])


def _card_before(model: str) -> str:
    source = resolve(model)
    card = source / CARD_FILE if isinstance(source, Path) else None
    return card.read_text(encoding="utf-8") if card is not None and card.is_file() else LOADING


def _sizes(recipe: Recipe) -> str:
    """Return the section on how a size of an elastic checkpoint is loaded."""
    elastic = recipe.elastic
    if elastic is None:
        return ""
    return f"""
## Sizes

One file of all sizes from {elastic.smallest:g}..{elastic.largest:g} of the linear weights.
The figures above are of the largest, which is loaded where none is named:

```python
AutoModelForCausalLM.from_pretrained("path/or/name/of/this/model", spectrim_budget=\
{elastic.smallest:g})
```
"""


def _tables(recipe: Recipe) -> list[str]:
    tables = recipe.embeddings
    if tables is None:
        return []
    return [f"embedding table factored by {tables.method} at budget {tables.budget:g}"]


def _data(recipe: Recipe, provenance: Mapping[str, Any]) -> str:
    if recipe.task is not None:
        counted = "the answers' tokens" if recipe.task.labels == "answer" else "all tokens"
        return f"the task {recipe.task.data}, its loss counted on {counted}"
    recorded = provenance.get("data", {}).get("sequences")
    sequences = recipe.calibration.sequences or recorded
    counted = f", {sequences} sequences" if sequences else ""
    return f"{recipe.calibration.data or DEFAULT_TEXT}{counted}"
