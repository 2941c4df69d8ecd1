"""Every guide has a picture, which is what the script draws from the tables of today."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

from tests.documentation.pages import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
LARGEST = 40_000
"""Bytes."""
FRONT = "smollm2"
"""The README's."""


def guides() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    [pages] = [part["Guides"] for part in yaml.safe_load(text)["nav"] if "Guides" in part]
    return [page.removesuffix(".md") for entry in pages for page in entry.values()]


def test_every_guide_has_a_picture():
    import guide_pictures

    assert set(guide_pictures.pictures()) == {*guides(), FRONT}


@pytest.mark.parametrize("name", [*guides(), FRONT])
def test_a_picture_is_current_and_small(name):
    import guide_pictures

    stored = (guide_pictures.PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert stored == guide_pictures.pictures()[name], "run python scripts/guide_pictures.py"
    assert len(stored) < LARGEST


@pytest.mark.parametrize("guide", guides())
def test_a_guide_shows_its_picture(guide):
    at_root = guide == "contributing"
    page = ROOT / ("CONTRIBUTING.md" if at_root else f"docs/{guide}.md")
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+\.svg)\)", page.read_text(encoding="utf-8"))
    assert [place for _, place in shown] == [f"{'docs/' * at_root}pictures/{guide}.svg"]


@pytest.mark.parametrize("name", [*guides(), FRONT])
def test_nothing_is_drawn_outside(name):
    import guide_pictures

    root = ElementTree.fromstring(guide_pictures.pictures()[name])
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for part in root.iter():
        x, y = float(part.get("x", 0)), float(part.get("y", 0))
        assert 0 <= x <= width, ElementTree.tostring(part)
        assert 0 <= y <= height, ElementTree.tostring(part)
        if part.tag.endswith("rect"):
            assert x + float(part.attrib["width"]) <= width
            assert y + float(part.attrib["height"]) <= height
        if part.tag.endswith("text"):  # seven units a letter at most
            long = 7.0 * len(part.text or "")
            before = {"start": 0.0, "middle": 0.5, "end": 1.0}[part.attrib["text-anchor"]]
            start = x - long * before
            assert start > -8, part.text
            assert start + long < width + 8, part.text


def test_numbers_come_from_the_pages():
    import guide_pictures

    found = guide_pictures.table("quantizing.md", "stored as", "rtn")
    assert found.numbers("rtn")[0] == 0.184
    assert f">{found.numbers('rtn')[0]:g}<" in guide_pictures.pictures()["quantizing"]
