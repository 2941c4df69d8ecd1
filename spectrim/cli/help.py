"""Help pages as plain text: one section per panel of options, words never broken.

Markup is not interpreted, so `:train:` and `[brackets]` appear as written, and names with
hyphens stay in one piece at any width.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 80
"""Columns of the widest line, also on wider terminals."""
_NARROWEST = 50
_FIRST_COLUMN = 28
_TYPES = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER"}


def help_page(command: Any, context: Any) -> str:
    """Return usage, description, arguments, options by panel, and the commands of a group."""
    width = max(min(shutil.get_terminal_size().columns, WIDTH), _NARROWEST)
    usage = [context.command_path, *_usage(command, context)]
    parts = [_wrap("Usage: " + " ".join(usage), width, "", " " * 4)]
    parts += [_wrap(text, width) for text in _paragraphs(command.help)]
    for title, rows in _panels(command, context).items():
        parts.append("\n".join([f"{title}:", *definitions(rows, width)]))
    return "\n\n".join(parts) + "\n"


def definitions(rows: Iterable[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Return the lines of a list of (term, text): terms at the left, texts in one column."""
    rows = list(rows)
    column = 2 + min(max((len(term) for term, _ in rows), default=0), _FIRST_COLUMN) + 2
    lines = []
    for term, text in rows:
        first, *rest = _wrap(text, width - column).splitlines() or [""]
        if len(term) + 4 > column:
            lines.append(f"  {term}")
            lines.append(" " * column + first)
        else:
            lines.append(f"  {term}".ljust(column) + first)
        lines += [" " * column + line for line in rest]
    return [line.rstrip() for line in lines]


def _usage(command: Any, context: Any) -> list[str]:
    """Return the pieces of the usage line, with arguments as `MODEL` or `[MODEL]`."""
    pieces = command.collect_usage_pieces(context)
    return [re.sub(r"[{}]", "", piece).upper() for piece in pieces]


def summary(command: Any) -> str:
    """Return the first sentence of a command's help."""
    return " ".join(next(iter(_paragraphs(command.help)), "").split())


def _panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    panels: dict[str, list[tuple[str, str]]] = {"Commands": [], "Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is None:
            continue
        argument = parameter.param_type_name == "argument"
        own = "Arguments" if argument else "Options"
        title = getattr(parameter, "rich_help_panel", None) or own
        term, text = _record(record)
        panels.setdefault(title, []).append((_argument(term) if argument else term, text))
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            panels["Commands"].append((name, summary(command.get_command(context, name))))
    return {title: rows for title, rows in panels.items() if rows}


def _record(record: tuple[str, str]) -> tuple[str, str]:
    """Return option and text with the usual words for types: `--data TEXT`."""
    term, text = record
    term = re.sub(r"<(?:list\[)?(\w+)\]?>", lambda m: _TYPES.get(m[1], m[1].upper()), term)
    return term.replace(" / ", "/"), " ".join(text.split())


def _argument(term: str) -> str:
    """Return the name of an argument without its type: `MODEL` for `model TEXT`."""
    return re.split(r"[ .]", term.strip("[]"))[0].upper()


def _paragraphs(text: str | None) -> list[str]:
    cleaned = inspect.cleandoc(text or "").partition("\f")[0]
    return [" ".join(part.split()) for part in cleaned.split("\n\n") if part.strip()]


def _wrap(text: str, width: int, first: str = "", later: str = "") -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
