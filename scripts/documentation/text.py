"""From docstrings and dataclasses to Markdown."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[2]
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")
_CONSTRAINED = re.compile(r"Annotated\[(.+), Field\((.*)\)\]")
_CODE = re.compile(r"(`[^`]*`)")


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: equations are its indented blocks, so only what Markdown would
    take for emphasis or HTML is escaped."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    text = "\n".join(line if line.startswith("    ") else _escaped(line) for line in lines)
    return re.sub(r"(?m)^(\S.*)\n(    )", r"\1\n\n\2", text)


def _escaped(line: str) -> str:
    """Outside of code; a bullet keeps its star."""
    parts = _CODE.split(line)
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<=\S)([*<])|([*<])(?=\S)", _slash, part)
        for part in parts
    )


def _slash(match: re.Match[str]) -> str:
    return "\\" + match.group()


def sources(reference: str) -> str:
    """With a link for each arXiv number."""
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", reference)


def own_docstring(thing: Any) -> str:
    """Not the one that `dataclass` makes of the fields, nor one that is inherited."""
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    generated = dataclasses.is_dataclass(thing) and (text or "").startswith(
        f"{getattr(thing, '__name__', '')}("
    )
    return "" if generated or not text else text


def options_text(options: type) -> str:
    """What the dataclass and those it extends say of their fields."""
    classes = [c for c in options.__mro__ if dataclasses.is_dataclass(c)]
    return "\n\n".join(prose(own_docstring(c)) for c in classes if own_docstring(c))


def fields(cls: type) -> list[str]:
    """A bullet for each field: name, type, default."""
    return [f"- `{field.name}: {_type(field)}{_default(field)}`" for field in _public(cls)]


def _public(cls: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if not field.name.startswith("_")]


def _type(field: dataclasses.Field[Any]) -> str:
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    return _CONSTRAINED.sub(r"\1 (\2)", text or str(field.type))


def _default(field: dataclasses.Field[Any]) -> str:
    for holder in (field, field.default):  # pydantic keeps a field's default in an object
        if isinstance(factory := getattr(holder, "default_factory", None), Callable):
            return f" = {value_text(factory())}"
    default = getattr(field.default, "default", field.default)
    required = default is dataclasses.MISSING or default is PydanticUndefined
    return "" if required else f" = {value_text(default)}"


def value_text(value: Any) -> str:
    """A default as Python writes it; without arguments where it is an object of ours."""
    text = repr(value)
    plain = isinstance(value, bool | int | float | str | tuple | list | dict | None)
    return text if plain and len(text) < 80 else f"{type(value).__name__}(...)"


def place(thing: Any) -> str:
    """The file that defines it, from the repository's root."""
    return Path(inspect.getfile(inspect.unwrap(thing))).resolve().relative_to(ROOT).as_posix()
