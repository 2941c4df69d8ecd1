"""What mkdocs calls while it builds the site: pages that are made, not written."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import method_pages
import reference_pages
from kinds import KINDS, entries
from text import ROOT

from spectrim.pipeline.presets import PRESETS


def on_config(config: Any) -> Any:
    """The navigation with the pages of methods and of the reference in it."""
    makers = {"methods/": _methods, "reference/": _reference}
    config.nav = [
        {title: makers[place]() if place in makers else place}
        for item in config.nav
        for title, place in item.items()
    ]
    return config


def _methods() -> list[Any]:
    parts = [
        {about.title: [entry.page for entry in entries(kind)]} for kind, about in KINDS.items()
    ]
    presets = [f"methods/presets/{name}.md" for name in PRESETS]
    return ["methods/index.md", {"Presets": presets}, *parts]


def _reference() -> list[str]:
    return ["reference/index.md", *(f"reference/{p}.md" for p in reference_pages.packages())]


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that no file holds: the README as the first one, the log, what is made."""
    made = method_pages.pages() | reference_pages.pages()
    made |= {"index.md": first_page(), "log.md": (ROOT / "LOG.md").read_text(encoding="utf-8")}
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def first_page() -> str:
    """The README, its links as seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("](LOG.md", "](log.md")
    return re.sub(r"\]\(docs/", "](", text)
