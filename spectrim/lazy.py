"""Load public names on first use, so that importing a package costs next to nothing."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for the names that a package's stub imports.

    The stub (`__init__.pyi` beside `file`) is the only list of the names; type checkers and
    editors read it too.
    """
    stub = Path(file).with_suffix(".pyi").read_text(encoding="utf-8")
    origins = {
        alias.name: node.module
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }

    def load(name: str) -> Any:
        if (module := origins.get(name)) is None:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(module), name)

    return load, lambda: sorted(origins)
