"""The licence that a model's own card states: what is made from it keeps it."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from spectrim.checkpoint.load import resolve
from spectrim.errors import InputError

_CARD = "README.md"


def license_of(name: str) -> str | None:
    """From the front matter of the model's card, in its directory or on the Hub; None where
    there is no card (any more), or it states none: a long run must not end on this."""
    try:
        place = resolve(name)
        path = place / _CARD if isinstance(place, Path) else Path(hf_hub_download(place, _CARD))
        text = path.read_text(encoding="utf-8")
    except (InputError, OSError, ValueError, HfHubHTTPError):
        return None
    return stated_license(text)


def stated_license(card: str) -> str | None:
    start, matter, _ = [*card.split("---", 2), "", ""][:3]
    if start.strip():
        return None
    try:
        values = yaml.safe_load(matter)
    except yaml.YAMLError:
        return None
    stated = values.get("license") if isinstance(values, dict) else None
    return stated if isinstance(stated, str) else None
