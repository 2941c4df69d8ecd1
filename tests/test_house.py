"""The rules of the house that a test can hold: imports run one way, files stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import spectrim

ROOT = Path(spectrim.__file__).parent
LEVELS = (
    {"errors", "noise", "processes", "renamed"},
    {"registry", "several", "storage", "workspace"},
    {"trackers"},
    {"linalg"},
    {"data", "statistics", "layers", "tasks"},
    {"surgery"},
    {"streaming"},
    {"calibration"},
    {"kernels"},
    {"inference"},
    {"decompositions", "allocation", "compressors", "embeddings"},
    {"refinement"},
    {"selection"},
    {"recipe"},
    {"presets"},
    {"planning"},
    {"curves"},
    {"hub", "evaluation"},
    {"speed"},
    {"pipeline"},
    {"report"},
    {"explore"},
    {"cli"},
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def _part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def _imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "spectrim":
                names = [f"spectrim.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {n.split(".")[1] for n in names if n.startswith("spectrim.")}
    return {part for part in parts if (ROOT / part).is_dir() or (ROOT / f"{part}.py").exists()}


@pytest.mark.parametrize(
    "path", [f for f in FILES if _part(f) in LEVEL_OF], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_run_one_way(path):
    own = _part(path)
    for part in _imported_parts(path) - {own}:
        assert LEVEL_OF[part] <= LEVEL_OF[own], (own, part)


def test_every_part_has_a_level():
    parts = {_part(path) for path in FILES if any(path.read_text())}
    assert parts - set(LEVEL_OF) <= {"__init__", "__main__", "assets"}


def test_no_file_is_larger_than_its_readers_patience():
    assert [f for f in FILES if len(f.read_text().splitlines()) > 400] == []
