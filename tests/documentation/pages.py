"""The pages of the documentation: links, anchors and commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKERS = ROOT / "scripts" / "documentation"
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


@dataclass(frozen=True)
class Command:
    """A command line of a page; whole where it stands in a block of its own."""

    page: str
    text: str
    whole: bool


def without_code(text: str) -> str:
    return _INLINE.sub("", _FENCE.sub("", text))


def links(text: str) -> list[str]:
    return [link for link in _LINK.findall(without_code(text)) if "://" not in link]


def anchors(text: str) -> set[str]:
    """Of the headings, as repository hosts and the site make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def commands(page: str, text: str) -> Iterator[Command]:
    """What begins with `spectrim`, in blocks and in the running text."""
    for language, block in _FENCE.findall(text):
        if language in ("", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("spectrim "):
                    yield Command(page, line, True)
    for span in _INLINE.findall(_FENCE.sub("", text)):
        if span.startswith("spectrim "):
            yield Command(page, span.replace("\n", " "), False)


def options(text: str) -> set[str]:
    """Long options that stand alone in the running text, as `--option` or `--option VALUE`."""
    spans = _INLINE.findall(_FENCE.sub("", text))
    return {span.split()[0] for span in spans if span.startswith("--")}
