"""The core install brings nothing that torch and transformers do not; the rest are extras."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import spectrim

pytestmark = pytest.mark.slow

ROOT = Path(spectrim.__file__).parent
NAMES = {"pyyaml": "yaml"}
"""Of distributions whose module is called otherwise."""
WITH_THEM = {"markupsafe", "numpy", "psutil", "tokenizers"}
"""What those require that are declared."""


def declared() -> list[str]:
    text = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    given = tomllib.loads(text)["project"]["dependencies"]
    return [canonicalize_name(Requirement(each).name) for each in given]


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
    if not (ROOT.parent / "pyproject.toml").exists():
        pytest.skip("an installed package has no pyproject.toml")
    assert set(declared()) <= brought_by(("torch", ""), ("transformers", "torch"))
    assert brought_by(*((name, "") for name in declared())) >= WITH_THEM


def modules_of(path: Path) -> set[str]:
    """What a file imports whenever it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_extras_are_imported_where_they_are_used():
    """A kernel in Triton is imported only where there is Triton."""
    known = {NAMES.get(name, name.replace("-", "_")) for name in declared()}
    known |= {"spectrim"} | WITH_THEM | sys.stdlib_module_names
    foreign = {
        str(path.relative_to(ROOT)): names
        for path in ROOT.rglob("*.py")
        if (names := modules_of(path) - known)
    }
    assert {name for names in foreign.values() for name in names} <= {"triton"}, foreign
    assert all(name.startswith("kernels/") for name in foreign), foreign
