"""Every link between the pages leads somewhere."""

from __future__ import annotations

import re

import pytest

from tests.documentation.pages import ROOT, WRITTEN, anchors, links
from tests.test_house import LEVEL_OF


def test_links_and_anchors_are_found():
    text = "# A b (c)\n[x](y.md#a-b-c) `[no](z)`\n```\n[no](z)\n# d\n```\n"
    assert links(text) == ["y.md#a-b-c"]
    assert anchors(text) == {"a-b-c"}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_tree_of_the_readme_is_current():
    tree = WRITTEN[0].read_text(encoding="utf-8").partition("## The code")[2]
    parts = [p for p in (ROOT / "spectrim").iterdir() if not p.name.startswith(("__", "py."))]
    missing = [p.name for p in parts if f"{p.stem}{'/' if p.is_dir() else '.py'}" not in tree]
    assert missing == []


def test_the_tree_of_the_readme_has_the_levels_of_the_imports():
    tree = WRITTEN[0].read_text(encoding="utf-8").partition("## The code")[2]
    rows = re.findall(r"^  (\w+)(?:/|\.py) +(\d)  ", tree, re.M)
    shown = {room: int(level) for room, level in rows}
    assert shown.pop("assets") == 1  # no code, so no test of imports holds it
    assert shown == LEVEL_OF
    assert [level for _, level in rows] == sorted(level for _, level in rows)


def test_every_page_is_reached_from_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page.name for page in WRITTEN[1:] if f": {page.name}\n" not in navigation]
    assert missing == []
