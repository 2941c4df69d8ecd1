"""The reference: what each package says is public, from its docstrings."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from text import fields, own_docstring, place, prose, value_text

import spectrim

_WIDTH = 88


def packages() -> list[str]:
    """spectrim itself, and those of its packages and modules that name what is public."""
    names = [f"spectrim.{info.name}" for info in pkgutil.iter_modules(spectrim.__path__)]
    names.remove("spectrim.__main__")
    return ["spectrim", *(n for n in names if hasattr(importlib.import_module(n), "__all__"))]


def pages() -> dict[str, str]:
    """Markdown by its place under docs/."""
    return {f"reference/{name}.md": _page(name) for name in packages()} | {
        "reference/index.md": _index()
    }


def _index() -> str:
    lines = []
    for name in packages():
        first = prose(_docstring_of(name)).partition("\n\n")[0].replace("\n", " ")
        lines.append(f"- [`{name}`]({name}.md): {first}")
    head = (
        "# API reference\n\nEverything public, from its docstrings. Most programs need only "
        "the functions of `spectrim`; the packages hold the methods and their parts.\n\n"
    )
    return head + "\n".join(lines) + "\n"


def _docstring_of(package: str) -> str:
    return importlib.import_module(package).__doc__ or ""


def _page(package: str) -> str:
    module = importlib.import_module(package)
    parts = [f"# `{package}`", prose(module.__doc__)]
    for name in sorted(module.__all__):
        parts += _entry(name, getattr(module, name), module)
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry(name: str, thing: Any, module: ModuleType) -> Iterator[str]:
    yield f"## `{name}`"
    if inspect.isclass(thing):
        yield from _class(name, thing)
    elif inspect.isfunction(thing):
        yield f"```python\n{_signature(name, thing)}\n```"
        yield prose(thing.__doc__)
        yield f"Defined in `{place(thing)}`."
    else:
        yield f"```python\n{name} = {value_text(thing)}\n```"
        yield prose(value_docstring(module, name))


def value_docstring(module: ModuleType, name: str) -> str:
    """The string below an assignment to the name; of a registry, what its package says."""
    if package := getattr(getattr(module, name), "package", None):
        return _docstring_of(package)
    own, whole = (Path(inspect.getfile(m)).parent for m in (module, spectrim))
    for file in (*sorted(own.rglob("*.py")), *sorted(whole.rglob("*.py"))):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for statement, below in pairwise(body):
            if name in _assigned(statement) and isinstance(below, ast.Expr):
                return ast.literal_eval(below.value)
    return ""


def _assigned(statement: ast.stmt) -> list[str]:
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _class(name: str, cls: type) -> Iterator[str]:
    if dataclasses.is_dataclass(cls):
        yield f"```python\nclass {name}\n```"
        yield prose(own_docstring(cls))
        yield "\n".join(fields(cls))
    else:
        yield f"```python\n{_signature(f'class {name}', cls)}\n```"
        yield prose(own_docstring(cls))
    yield from (line for member in vars(cls) for line in _member(name, cls, member))
    yield f"Defined in `{place(cls)}`."


def _member(owner: str, cls: type, name: str) -> Iterator[str]:
    """A public method or property that says something."""
    value = vars(cls)[name]
    function = getattr(value, "__func__", value)
    if isinstance(value, property | cached_property):
        function = value.fget if isinstance(value, property) else value.func
    if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
        return
    yield f"### `{owner}.{name}`"
    if function is value or hasattr(value, "__func__"):
        yield f"```python\n{_signature(name, function)}\n```"
    yield prose(function.__doc__)


def _signature(name: str, thing: Any) -> str:
    """On one line where it fits, else a line for each parameter."""
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return name
    parameters = [_parameter(p) for p in signature.parameters.values()]
    end = ")"
    if signature.return_annotation is not inspect.Signature.empty and "class" not in name:
        end = f") -> {_annotation(signature.return_annotation)}"
    line = f"{name}({', '.join(parameters)}{end}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {p},\n" for p in parameters) + end


def _parameter(parameter: inspect.Parameter) -> str:
    star = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    text = star + parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not inspect.Parameter.empty:
        text += f" = {_default(parameter.default)}"
    return text


def _default(value: Any) -> str:
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__name__
    return value_text(value)


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
