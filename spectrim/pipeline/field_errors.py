"""One line for what a validation found: each wrong field by its path, and the nearest word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import ValidationError

from spectrim.errors import InputError, did_you_mean

T = TypeVar("T")


def checked_settings(cls: type[T], given: Mapping[str, Any]) -> T:
    """Return `cls(**given)` of a pydantic dataclass. Raises InputError in one line."""
    try:
        return cls(**given)
    except ValidationError as error:
        raise InputError(explain("options", error, cls)) from error


def explain(source: str, error: ValidationError, root: type) -> str:
    """Return one line: each wrong field by its path, what was given, the nearest word.

    root: the dataclass that was to be filled.
    """
    parts = []
    for item in error.errors():
        path = [s for s in item["loc"] if isinstance(s, int) or str(s).isidentifier()]
        place = ".".join(map(str, path)) or root.__name__.lower()
        parts.append(f"{place}: {_reason(root, path, dict(item))}")
    return f"{source}: " + "; ".join(parts)


def _reason(root: type, path: list[Any], item: dict[str, Any]) -> str:
    given = item.get("input")
    if item["type"] == "unexpected_keyword_argument":
        names = [field.name for field in fields(_class_at(root, path[:-1]))]
        wrong = str(item["loc"][-1])
        return f"no field '{wrong}'{did_you_mean(wrong, names)}; expected {', '.join(names)}"
    if item["type"] == "literal_error":
        expected = re.findall(r"'(\w+)'", item["ctx"]["expected"])
        return f"{item['msg']}, got '{given}'{did_you_mean(str(given), expected)}"
    if isinstance(given, int | float | str):
        return f"{item['msg']}, got {given!r}{_meaning(root, path)}"
    return str(item["msg"])


def _meaning(root: type, path: list[Any]) -> str:
    """Return the description of a field, as its option shows it."""
    owner = getattr(_class_at(root, path[:-1]), "__pydantic_fields__", {})
    field = owner.get(str(path[-1])) if path else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


def _class_at(root: type, path: list[Any]) -> Any:
    """Return the dataclass of a part of `root`."""
    cls: Any = root
    for step in path:
        if isinstance(step, str) and is_dataclass(cls):
            hint = get_type_hints(cls).get(step)
            cls = next((c for c in (hint, *get_args(hint)) if is_dataclass(c)), cls)
    return cls
