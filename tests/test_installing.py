"""The core install brings nothing that torch and transformers do not; the rest are extras."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import spectrim

pytestmark = pytest.mark.slow

ROOT = Path(spectrim.__file__).parent
NAMES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Of distributions whose module is called otherwise."""
HOSTS = {"vllm"}
"""Programs that load a plug-in of ours, and are there when it is imported."""


def project() -> dict[str, Any]:
    if not (ROOT.parent / "pyproject.toml").exists():
        pytest.skip("an installed package has no pyproject.toml")
    text = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]


def names_of(requirements: Iterable[str]) -> list[str]:
    return [canonicalize_name(Requirement(each).name) for each in requirements]


def modules_named(distributions: Iterable[str]) -> set[str]:
    return {NAMES.get(name, name.replace("-", "_")) for name in distributions}


def declared() -> list[str]:
    return names_of(project()["dependencies"])


def brought_by(*roots: tuple[str, str]) -> set[str]:
    """All that these, each with an extra, require on this machine."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name, extra = waiting.pop()
        try:
            given = [Requirement(each) for each in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for each in given:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                required = canonicalize_name(each.name)
                if required not in found:
                    found.add(required)
                    waiting += [(required, ""), *((required, e) for e in each.extras)]
    return found | {name for name, _ in roots}


def test_the_core_depends_on_what_is_there_anyway():
    assert set(declared()) <= brought_by(("torch", ""), ("transformers", "torch"))


def imported_by(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names


def modules_of(path: Path) -> set[str]:
    """Return what a file imports whenever it is imported itself."""
    return imported_by(ast.parse(path.read_text(encoding="utf-8")).body)


def all_modules_of(path: Path) -> set[str]:
    """Return what a file imports anywhere, inside functions as well."""
    return imported_by(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("package", ["spectrim", "spectrim_vllm"])
def test_all_imports_are_declared(package):
    extras = project()["optional-dependencies"].values()
    known = modules_named([*declared(), *(name for each in extras for name in names_of(each))])
    known |= {"spectrim", "spectrim_vllm"} | HOSTS
    files = (ROOT.parent / package).rglob("*.py")
    undeclared = {str(path): names for path in files if (names := all_modules_of(path) - known)}
    assert undeclared == {}


def test_extras_are_imported_where_they_are_used():
    """A kernel in Triton is imported where there is Triton, a tuner of PEFT where PEFT is."""
    known = modules_named(declared()) | {"spectrim"}
    rooms = {"triton": "inference/kernels/", "peft": "adapters/_"}
    elsewhere = {
        f"{place}: {name}"
        for path in ROOT.rglob("*.py")
        for name in modules_of(path) - known
        if not (place := str(path.relative_to(ROOT))).startswith(rooms.get(name, "nowhere"))
    }
    assert elsewhere == set()
