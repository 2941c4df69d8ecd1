"""README.md of a fine-tuned checkpoint: what it said before, and what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectrim import checkpoint
from spectrim.checkpoint.card import LOADING


def finetuning_card(model: str, entry: dict[str, Any]) -> str:
    """entry: the last one of `provenance["refinement"]`."""
    options = ", ".join(f"{k} {v}" for k, v in entry["options"].items() if v is not None)
    data = entry["data"]
    lines = ["## Fine-tuned", ""]
    lines += [
        f"On {data['source']}, {data['sequences']} rows, by `{entry['name']}`",
        f"({options}).",
    ]
    lines += ["", "| training loss | first tenth | last tenth |", "|---|---|---|"]
    lines += [f"| {what} | {a:.4f} | {b:.4f} |" for what, (a, b) in entry["losses"].items()]
    return "\n".join([_before(model).rstrip(), "", *lines, ""])


def _before(model: str) -> str:
    place = checkpoint.resolve(model)
    card = place / "README.md" if isinstance(place, Path) else None
    return card.read_text(encoding="utf-8") if card is not None and card.is_file() else LOADING
