"""Rules of the house that a test can hold: imports run to lower levels, code stays short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
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
REPOSITORY = ROOT.parent
CODE = [
    path
    for place in ("spectrim", "spectrim_vllm", "benchmarks", "examples", "scripts", "tests")
    for path in sorted((REPOSITORY / place).rglob("*.py"))
    if "frozen/v1" not in path.as_posix()  # written by an old version, kept as it was
]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
"""Lines."""
BRITISH = re.compile(
    r"(?i)behaviour|catalogue|centre|colour|labell|licence|neighbour|"
    r"(?:factor|general|initial|normal|optim|organ|quant|regular|serial|special)is(?:e|ing|ation)"
)


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _package(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).parent.parts)


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports from the package."""
    for node in _nodes(path):
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


def _defined(path: Path) -> Iterator[str]:
    for node in _nodes(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_identifiers_are_spelled_as_in_torch():
    assert BRITISH.search("quantise")
    assert [(path, n) for path in FILES for n in _defined(path) if BRITISH.search(n)] == []


def _functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in _nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}", node


def _lengths_of_functions(path: Path) -> Iterator[tuple[str, int]]:
    for where, node in _functions(path):
        yield where, (node.end_lineno or 0) - node.lineno + 1


def test_files_stay_short():
    assert {path.relative_to(REPOSITORY).parts[0] for path in CODE} >= {"spectrim", "tests"}
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert [str(path) for path, lines in lengths.items() if lines > LONGEST_FILE] == []


def test_functions_stay_short():
    functions = [found for path in CODE for found in _lengths_of_functions(path)]
    assert len(functions) > 5000
    assert [found for found in functions if found[1] > LONGEST_FUNCTION] == []


def _positional(path: Path) -> Iterator[tuple[str, list[ast.arg]]]:
    for where, node in _functions(path):
        yield where, [*node.args.posonlyargs, *node.args.args]


def test_the_context_of_a_run_comes_last():
    found = [
        place
        for path in FILES
        for place, arguments in _positional(path)
        for argument in arguments[:-1]
        if argument.annotation is not None and "RunContext" in ast.unparse(argument.annotation)
    ]
    assert found == []


def test_recipes_are_taken_apart_in_the_pipeline():
    below = [path for path in FILES if LEVEL_OF.get(_room(path), 99) < LEVEL_OF["pipeline"]]
    assert len(below) > 300
    found = [
        place
        for path in below
        for place, arguments in _positional(path)
        for argument in arguments
        if argument.annotation is not None
        and re.search(r"\bRecipe\b", ast.unparse(argument.annotation))
    ]
    assert found == []
