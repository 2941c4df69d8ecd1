"""Write the README.md of compressed, quantized and fine-tuned checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrim.checkpoint import CardFacts, SpectrimConfig, model_card, resolve
from spectrim.checkpoint.card import (
    CARD_FILE,
    escape_markdown,
    front_matter,
    license_of,
    loading,
    predicted_loss,
    shown_name,
    without_directories,
)
from spectrim.data import DEFAULT_TEXT
from spectrim.data.loading import split_spec
from spectrim.data.sources import hub
from spectrim.models.kind import ModelKind, kind_named
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Plan
from spectrim.report.facts import ReportData
from spectrim.report.formatting import ratio, size

_BYTES = {
    "dense_bytes": "layers before",
    "base_bytes": "quantized layers",
    "path_bytes": "low-rank corrections",
}


def card_for(base: str, plan: Plan, recipe: Recipe, facts: ReportData | None = None) -> str:
    """Return the card of the model named `base`, compressed by `plan`.

    facts: with what was measured, if anything.
    """
    refined = [f"refined by {step.name}" for step in recipe.refinement]
    steps = [plan.method, f"{plan.allocation} ranks", *_tables(recipe), *refined]
    kind = kind_named(plan.provenance)
    card = model_card(
        CardFacts(
            base_model=base,
            method=", ".join(steps),
            layer_kind=plan.layer,
            kept=plan.kept,
            data=_data(recipe, plan.provenance),
            predicted=_predicted(plan, bool(refined), kind),
            ranks=plan.ranks,
            license=license_of(base),
            datasets=_datasets(recipe),
            kind=kind,
            removed_experts={name: block.removed for name, block in plan.experts.items()},
            **(_measured(facts) if facts else {}),
        )
    )
    return card + _sizes(recipe)


def _predicted(plan: Plan, refined: bool, kind: ModelKind) -> list[tuple[str, str]]:
    if (loss := plan.predicted_loss) is None:
        return []
    when = " before refinement" if refined else ""
    rows = [(f"{predicted_loss(kind)}{when}", f"{loss:+.4f}")]
    if not kind.of_tokens:
        return rows
    return [(f"perplexity, ratio to the base model{when}", ratio(loss)), *rows]


def _measured(facts: ReportData) -> dict[str, Any]:
    """Return the sizes and the measured metrics of a report, as fields of a card."""
    dense, stored = (sum(getattr(p, n) for p in facts.parts) for n in ("dense", "stored"))
    found: dict[str, Any] = {"sizes": (size(dense), size(stored)) if dense else None}
    rows = []
    if facts.loss_increase is not None and facts.original_perplexity is not None:
        before, times = facts.original_perplexity, math.exp(min(facts.loss_increase, 20.0))
        after = f"{before * times:.4g} ({ratio(facts.loss_increase)})"
        rows.append(("perplexity", f"{before:.4g}", after))
    elif facts.loss_increase is not None and (loss := facts.original_loss) is not None:
        what = f"loss, {facts.of_kind.units}"
        rows.append((what, f"{loss:.4f}", f"{loss + facts.loss_increase:.4f}"))
    if facts.accuracy is not None:
        first, second = facts.accuracy
        rows.append(
            (f"accuracy of the {facts.of_kind.predicts}", f"{first:.1%}", f"{second:.1%}")
        )
    if facts.result is not None:
        what = f"KL divergence from the base model, {facts.of_kind.units}"
        rows.append((what, "0", f"{facts.result:.4f}"))
    if facts.agreement is not None:
        what = f"same {facts.of_kind.predicts} as the base model"
        rows.append((what, "100%", f"{facts.agreement:.1%}"))
    return found | {"figures": rows, "measured_on": facts.result_from if rows else ""}


def _datasets(recipe: Recipe) -> list[str]:
    """Return the data sets of the Hub among the calibration's texts."""
    specs = [part.spec for part in split_spec(recipe.calibration.data or DEFAULT_TEXT)]
    return list(dict.fromkeys(hub.parse(spec).name for spec in specs if hub.matches(spec)))


def quantization_card(base: str, config: SpectrimConfig, recipe: Recipe) -> str:
    """Return the card of a model of quantized layers; bytes are those of their weights."""
    facts = config.provenance["compensation"]
    entry = next(iter(config.layers.values()))
    options = ", ".join(f"{k} {v}" for k, v in entry["options"].items() if v != "")
    lines = [front_matter(base, license_of(base), ["spectrim"])]
    lines += [f"# {escape_markdown(shown_name(base))}, compressed by {facts['base']}", ""]
    lines += [loading()]
    chosen = facts.get("chosen", [])
    stored = f"`{facts['base']}`" + (f" ({options})" if options and not chosen else "")
    lines += [f"{len(config.layers)} linear layers are stored by {stored}."]
    if chosen:
        held = f"{facts['bits_per_weight']:.3g} bits per weight"
        lines += [f"Their options were chosen by predicted loss, {held} in all:", ""]
        lines += [f"- {escape_markdown(line)}" for line in chosen] + [""]
    if facts["path_bytes"]:
        lines += ["Low-rank corrections recover part of the error: method"]
        source = escape_markdown(without_directories(_data(recipe, config.provenance)))
        lines += [f"`{facts['method']}`, {facts['allocation']} ranks, from {source}."]
    lines += ["", "| | |", "|---|---|"]
    for key, what in _BYTES.items():
        lines.append(f"| {what} | {size(facts[key])} |")
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
    source = escape_markdown(without_directories(data["source"]))
    lines += [f"On {source}, {data['sequences']} rows,"]
    lines += [f"by `{entry['name']}` ({options})."]
    lines += ["", "| training loss | first tenth | last tenth |", "|---|---|---|"]
    lines += [f"| {what} | {a:.4f} | {b:.4f} |" for what, (a, b) in entry["losses"].items()]
    return "\n".join([_card_before(model).rstrip(), "", *lines, ""])


def _card_before(model: str) -> str:
    source = resolve(model)
    card = source / CARD_FILE if isinstance(source, Path) else None
    return (
        card.read_text(encoding="utf-8") if card is not None and card.is_file() else loading()
    )


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
