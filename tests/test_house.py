"""Rules of the house that a test can hold: imports run to lower levels, files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import spectrim

ROOT = Path(spectrim.__file__).parent
LEVELS = (
    {"errors", "lazy", "version"},
    {"registry", "runtime", "linalg"},
    {"data", "layers", "statistics", "estimators", "nn", "optim"},
    {"models"},
    {"calibration", "decompositions", "allocation", "training", "inference"},
    {"planning", "refinement", "adapters", "pruning", "checkpoint", "evaluation"},
    {"pipeline"},
    {"report"},
    {"cli"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))
FACE = {"__init__", "__main__", "import_hook"}
"""The public face is above every level; nothing inside imports it."""
LONGEST_FILE = 400


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _package(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).parent.parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports from the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} is a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "spectrim")


def _inside() -> Iterator[tuple[str, Path, str]]:
    for path in FILES:
        if _room(path) not in FACE:
            for line, name in _imports(path):
                yield f"{path.relative_to(ROOT)}:{line} {name}", path, name


def _is_private_elsewhere(path: Path, name: str) -> bool:
    parts = name.split(".")
    private = [
        number
        for number, part in enumerate(parts)
        if part.startswith("_") and not part.endswith("__")
    ]
    return bool(private) and not _package(path).startswith(".".join(parts[: private[0]]))


def test_every_import_goes_to_a_lower_level():
    wrong = [
        where
        for where, path, name in _inside()
        if "." in name
        and (room := name.split(".")[1]) != _room(path)
        and LEVEL_OF[room] >= LEVEL_OF[_room(path)]
    ]
    assert wrong == []


def test_nothing_inside_imports_the_public_face():
    faces = {f"spectrim.{name}" for name in spectrim.__all__} | {"spectrim"}
    rooms = {f"spectrim.{room}" for room in LEVEL_OF}
    assert [where for where, _, name in _inside() if name in faces - rooms] == []


def test_no_room_imports_another_packages_private_names():
    assert [where for where, path, name in _inside() if _is_private_elsewhere(path, name)] == []


def test_every_room_has_a_level():
    assert {_room(path) for path in FILES} - FACE <= set(LEVEL_OF)


def test_files_stay_short():
    long = [f for f in FILES if len(f.read_text().splitlines()) > LONGEST_FILE]
    assert long == []
