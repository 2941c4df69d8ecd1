"""The site is built without a warning, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.documentation.pages import ROOT

pytestmark = pytest.mark.slow

LOADED = re.compile(r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+href="https?:')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("mkdocs", "material"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra 'docs'")
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def test_written_and_made_pages_are_there(site):
    written = ("index", "quick_start", "log", "changelog", "contributing")
    for page in (*written, "methods/methods/obd", "reference/spectrim"):
        assert (site / f"{page}.html").exists(), page


def test_the_navigation_has_five_groups(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    tabs = re.search(r'<ul class="md-tabs__list">(.*?)</ul>', page, re.S)[1]
    titles = [" ".join(re.sub(r"<[^>]+>", "", tab).split()) for tab in tabs.split("</li>")]
    assert titles == ["Start", "Guides", "Methods", "Reference", "Background", ""]


def test_equations_are_mathematics(site):
    page = (site / "methods" / "allocations" / "loss_optimal.html").read_text(encoding="utf-8")
    equation = re.search(r'<math [^>]*display="block">(.*?)</math>', page, re.S)[1]
    assert "&#x02211;" in equation  # the sum
    assert "subject" in re.sub(r"<[^>]+>", "", equation)
    for made in site.rglob("*.html"):
        assert "arithmatex" not in made.read_text(encoding="utf-8"), made


def test_the_search_works_from_files(site):
    """Its index is a script, and its worker a frame, as files may not be fetched."""
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ")
    assert '"location":"methods/methods/obd.html"' in index
    page = (site / "index.html").read_text(encoding="utf-8")
    assert '<script src="assets/iframe-worker.js">' in page


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not LOADED.search(page.read_text(encoding="utf-8")), page
