"""The group of commands: each is imported on use, and its errors are one line."""

from __future__ import annotations

import importlib
import re
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spectrim.cli.help import help_page
from spectrim.cli.interrupts import Terminated
from spectrim.cli.logging import move_levels_first
from spectrim.errors import InputError, SpectrimError, did_you_mean
from spectrim.version import __version__

_UsageError: Any = typer.BadParameter.__base__
"""click's, wherever this version of typer keeps click."""
SETTINGS = {"help_option_names": ["-h", "--help"]}
COMMANDS = {
    "compress": "compress",
    "plan": "plan",
    "evaluate": "evaluate",
    "explore": "explore",
    "report": "report",
    "bench": "bench",
    "bench-speed": "bench_speed",
    "inspect": "inspect",
    "finetune": "finetune",
    "train": "train",
    "quantize": "quantize",
    "export": "export",
    "activate": "activate",
    "recipes": "recipes",
    "ls": "ls",
}
"""By name, the module of `spectrim.cli` whose function or app of that name it is."""


class PlainHelp:
    """Help without markup, from `help_page`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_page(self, ctx))


class Command(PlainHelp, TyperCommand):
    """A command that sets up threads and verbosity after its options are parsed."""

    def invoke(self, ctx: Any) -> Any:
        from spectrim.cli.start import start

        start(ctx)
        return super().invoke(ctx)


class Subcommands(PlainHelp, TyperGroup):
    """A group of commands within a command."""


class Commands(PlainHelp, TyperGroup):
    """The program. Raises SpectrimError for every failure that the user can fix."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if (module := COMMANDS.get(cmd_name)) is None:
            return None
        return load_command(cmd_name, module)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, move_levels_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            with ExitStack() as ctx.obj:  # what a command opens for as long as it runs
                return super().invoke(ctx)
        except _UsageError as error:
            place = error.ctx.command_path if error.ctx else ctx.command_path
            raise InputError(f"{_explained(error)}; see `{place} --help`") from error
        except Terminated:
            raise
        except KeyboardInterrupt as error:
            raise SpectrimError(
                "interrupted; the same command resumes from its last snapshot"
            ) from error


def load_command(name: str, module: str) -> Any:
    """Import a module of `spectrim.cli` and return its command of that name."""
    found = getattr(importlib.import_module(f"spectrim.cli.{module}"), module)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=Command, context_settings=SETTINGS)(found)
    return typer.main.get_command(alone)


def _explained(error: Any) -> str:
    """Return the message with the new name of an old word, or the nearest command."""
    from spectrim.pipeline.renamed import renamed_option

    message = error.format_message().rstrip(".")
    if choice := re.search(r"'([^']*)' is not one of (.*)$", message):
        return message + did_you_mean(choice[1], re.findall(r"'([^']+)'", choice[2]))
    if (renamed := renamed_option(message)) is not None:
        return renamed
    name = message.removeprefix("No such command '").rstrip("'")
    near = get_close_matches(name, list(COMMANDS), n=1)
    if name != message and near and "Did you mean" not in message:
        return f"{message} (did you mean '{near[0]}'?)"
    return message


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
    help="Compress language models by low-rank decomposition guided by the loss.",
)


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Also print versions, losses, times and memory."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print only results, warnings and errors.")
    ] = False,
) -> None:
    if verbose and quiet:
        raise InputError("choose one of --verbose and --quiet")
    context.meta["spectrim.level"] = (verbose, quiet)
