"""From docstrings and dataclasses to Markdown."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mathematics import displayed, is_formula, latex
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[2]
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")
_CONSTRAINED = re.compile(r"Annotated\[(.+), Field\((.*)\)\]")
_CODE = re.compile(r"(`[^`]*`)")
_BLOCK = re.compile(r"(?m)((?:^    .*\n?)+)")
_SYMBOL = r"[A-Za-z](?:_(?:in|out|hat|[a-z]{1,2})(?![a-zA-Z_])(?:\^T)?|\^[T23])"
_SYMBOLS = re.compile(
    r"((?<![\w.)])O\((?:[^()`]|\([^()`]*\))+\)"  # a cost
    rf"|(?:^|(?<=[a-z]{{2}}[ \n])|(?<=[.;:,][ \n])|(?<= \()){_SYMBOL}(?:(?: =)? {_SYMBOL})*"
    r"(?=[.;:,)](?:\s|$)|\s(?!sum|sqrt)[a-z]{2}))",
    re.M,
)


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: its indented blocks stay code, so only what Markdown would take
    for emphasis or HTML is escaped."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    text = "\n".join(line if line.startswith("    ") else _escaped(line) for line in lines)
    return re.sub(r"(?m)^(\S.*)\n(    )", r"\1\n\n\2", text)


def prose_of_method(docstring: str | None) -> str:
    """A docstring of a module in a registry as Markdown: its indented blocks are equations, and
    what stands in backticks may be a formula."""
    made = []
    for part in _BLOCK.split(inspect.cleandoc(docstring or "")):
        lines = part.strip("\n").splitlines()
        blocks = displayed(lines) if part.startswith("    ") else [_with_formulas(part.strip())]
        made += [block for block in blocks if block]
    return "\n\n".join(made)


def _with_formulas(text: str) -> str:
    return "".join(_formula_or_text(part) for part in _CODE.split(text))


def _formula_or_text(part: str) -> str:
    if not part.startswith("`"):
        pieces = _SYMBOLS.split(part)
        return "".join(_inline(p) if n % 2 else _escaped(p) for n, p in enumerate(pieces))
    code = " ".join(part.strip("`").split())
    return _inline(code) if is_formula(code) else part


def _inline(formula: str) -> str:
    return f"${latex(formula).strip()}$"


def _escaped(text: str) -> str:
    """Outside of code; a bullet keeps its star."""
    parts = _CODE.split(text)
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
    """Return the field descriptions of a dataclass and of those it extends."""
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
