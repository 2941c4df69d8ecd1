"""No page tells a command that fails: what no index has is installed from a clone, until a
release sets the address of the repository; from then on the pages tell it."""

from __future__ import annotations

import re

import pytest

from spectrim import version
from tests.documentation.pages import ROOT, WRITTEN

FROM_INDEX = re.compile(r"pip install (?:-\S+ )*'?spectrim(?![\w\[])(?! @)")
"""`pip install 'spectrim[extra]'` adds to what is there, and needs no index for that."""
FIRST = [ROOT / "README.md", ROOT / "docs" / "quick_start.md"]
"""The pages from which users install."""
TOLD = sorted(
    path
    for folder in ("spectrim", "spectrim_vllm", "examples", "docs", ".github")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".j2", ".js", ".yml", ".ipynb")
)


def lacks(text: str, command: str) -> list[str]:
    """What is wrong with the installing that a page tells."""
    wrong = [match.group() for match in FROM_INDEX.finditer(text)]
    if version.REPOSITORY:
        return wrong + [command] * (command not in text)
    return wrong + re.findall(r"git\+\S+", text)


def test_what_fails_is_found(monkeypatch):
    monkeypatch.setattr(version, "REPOSITORY", "")
    assert lacks("`pip install spectrim`", "") == ["pip install spectrim"]
    assert lacks("pip install 'spectrim @ git+https://a.b/c'", "") == ["git+https://a.b/c'"]
    assert lacks("pip install -e '.[data]', pip install 'spectrim[data]'", "") == []
    monkeypatch.setattr(version, "REPOSITORY", "https://a.b/c")
    command = version.install_command()
    assert lacks("in a clone", command) == [command]
    assert lacks(f"first {command}", command) == []


@pytest.mark.parametrize("page", FIRST, ids=lambda page: page.name)
def test_the_first_pages_install_what_there_is(page):
    assert lacks(page.read_text(encoding="utf-8"), version.install_command()) == []


def test_nothing_else_names_an_index_that_has_no_spectrim():
    for path in {*TOLD, *WRITTEN}:
        assert not FROM_INDEX.search(path.read_text(encoding="utf-8")), path
