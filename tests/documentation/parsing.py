"""Command lines as the command line itself would take them, without running anything."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

import typer

from spectrim.cli.app import app
from spectrim.cli.options import OPTIONS, recipe_of
from spectrim.pipeline.recipe import Recipe

_PLACEHOLDERS = {"K": "0.5", "L": "lowrank", "NAME": "text.txt", "N": "4"}
"""What pages write where a value of the user's own belongs."""


@cache
def group() -> Any:
    """The program with all its commands."""
    return typer.main.get_command(app)


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    return [_PLACEHOLDERS.get(word, word) for word in words[1:]]


def found(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after them."""
    command = group()
    while hasattr(command, "list_commands") and words and not words[0].startswith("-"):
        context = command.make_context("spectrim", [], resilient_parsing=True)
        inner = command.get_command(context, words[0])
        assert inner is not None, f"no command '{words[0]}'"
        command, words = inner, words[1:]
    return command, words


def parse(line: str) -> Recipe | None:
    """Raises what the command would raise for words it does not take; the recipe, if any."""
    command, words = found(words_of(line))
    given = command.make_context("spectrim", list(words)).params
    if not set(OPTIONS) <= set(given):
        return None
    if Path(given["recipe"]).suffix:  # a file of the user's
        given = given | {"recipe": "default"}
    # typer hands a command None for a repeatable option that is absent, click's context ()
    return recipe_of({name: None if given[name] == () else given[name] for name in OPTIONS})


def names_of(command: Any) -> set[str]:
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)}


def all_options() -> set[str]:
    """Of every command."""

    def walk(command: Any) -> set[str]:
        context = command.make_context("spectrim", [], resilient_parsing=True)
        names = command.list_commands(context) if hasattr(command, "list_commands") else []
        inner = [command.get_command(context, name) for name in names]
        return names_of(command).union(*map(walk, inner))

    return walk(group())
