"""The notebooks are stored without outputs, and their cells run one after the other."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from spectrim import version
from spectrim.version import install_command

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[str]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    return ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == kind]


def run(source: str, namespace: dict) -> object:
    """Run a cell as a notebook does; return the value of its last expression."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    tree = ast.parse("\n".join(lines))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)


def test_there_is_one():
    assert [path.name for path in NOTEBOOKS] == ["quick_start.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs_and_installs_what_a_release_says(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    if version.REPOSITORY:
        assert install_command() in "".join(cells(path, "code"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_cells_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRIM_CACHE", str(tmp_path / "cache"))
    namespace: dict = {"__name__": "__main__"}
    values = [run(source, namespace) for source in cells(path, "code")]
    shown = [value for value in values if hasattr(value, "_repr_html_")]
    assert len(shown) == 3, "the curve, the plan and the page"
    assert "<iframe srcdoc=" in shown[-1]._repr_html_()
    assert "measured" in repr(shown[-1])
    assert (tmp_path / "smaller" / "config.json").is_file()
    assert "<!doctype html>" in (tmp_path / "smaller.html").read_text()
