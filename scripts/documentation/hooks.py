"""Hooks of mkdocs that generate pages while it builds the site."""

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
from mathematics import with_mathml
from text import ROOT

from spectrim.pipeline.presets import PRESETS

ELSEWHERE = {
    "README.md": "index.md",
    "LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages of the repository's root, and what they are called on the site."""

_CODE = re.compile(r"<pre.*?</pre>|<code>(?P<text>[^<]*)</code>", re.S)
LONGEST = 24
"""Letters of a word of code that is not broken."""


def on_config(config: Any) -> Any:
    """Put the pages of methods and of the reference into the navigation."""
    config.nav = _with_made_pages(config.nav)
    return config


def _with_made_pages(item: Any) -> Any:
    """Return navigation with the list of its pages in place of each made directory."""
    if isinstance(item, list):
        return [_with_made_pages(inner) for inner in item]
    if isinstance(item, dict):
        return {title: _with_made_pages(inner) for title, inner in item.items()}
    return {"methods/": _methods, "reference/": _reference}.get(item, lambda: item)()


def _methods() -> list[Any]:
    parts = [
        {about.title: [entry.page for entry in entries(kind)]} for kind, about in KINDS.items()
    ]
    presets = [f"methods/presets/{name}.md" for name in PRESETS]
    return ["methods/index.md", {"Presets": presets}, *parts]


def _reference() -> list[str]:
    return ["reference/index.md", *(f"reference/{p}.md" for p in reference_pages.packages())]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand elsewhere, README, log and changes, and those that are made."""
    made = method_pages.pages() | reference_pages.pages()
    made |= {page: _inside_docs(source) for source, page in ELSEWHERE.items()}
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def _inside_docs(source: str) -> str:
    """Return a page of the repository's root, its links as seen from docs/."""
    text = (ROOT / source).read_text(encoding="utf-8")
    for name, page in ELSEWHERE.items():
        text = text.replace(f"]({name}", f"]({page}")
    return re.sub(r"\]\(docs/", "](", text)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Typeset the formulas, without a script or another host, and keep short words whole."""
    return _CODE.sub(_with_whole_words, with_mathml(html)).replace(" ± ", "&nbsp;±&nbsp;")


def _with_whole_words(match: re.Match[str]) -> str:
    """Mark words like `--budget` and `closed_form` in a piece of code against line breaks."""
    if match["text"] is None:
        return match[0]
    words = (
        f'<span class="word">{word}</span>'
        if re.search("[-_]", word) and len(word) <= LONGEST
        else word
        for word in re.split(r"(\s+)", match["text"])
    )
    return f"<code>{''.join(words)}</code>"
