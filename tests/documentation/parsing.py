"""Command lines as the command line itself would take them, without running anything."""

from __future__ import annotations

import importlib
import pkgutil
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import typer

import spectrim.cli
from spectrim.cli.options import OPTIONS, recipe_of
from spectrim.pipeline.recipe import Recipe

_PLACEHOLDERS = {"K": "0.5", "L": "lowrank", "NAME": "text.txt", "N": "4"}
"""What pages write where a value of the user's own belongs."""


@cache
def group() -> Any:
    """With the commands of every file of the command line."""
    for info in pkgutil.iter_modules(spectrim.cli.__path__):
        importlib.import_module(f"spectrim.cli.{info.name}")
    return typer.main.get_command(spectrim.cli.commands.app)


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    return [_PLACEHOLDERS.get(word, word) for word in words[1:]]


def found(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after them."""
    command = group()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command '{words[0]}'"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(line: str) -> Recipe | None:
    """Raises what the command would raise for words it does not take; the recipe, if any."""
    command, words = found(words_of(line))
    given = command.make_context("spectrim", list(words)).params
    if not set(OPTIONS) <= set(given):
        return None
    if Path(given["recipe"]).suffix:  # a file of the user's
        given = given | {"recipe": "default"}
    return recipe_of({name: given[name] for name in OPTIONS})


def names_of(command: Any) -> set[str]:
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)}


def all_options() -> set[str]:
    """Of every command."""

    def walk(command: Any) -> set[str]:
        inner = getattr(command, "commands", {}).values()
        return names_of(command).union(*(walk(c) for c in inner))

    return walk(group())
