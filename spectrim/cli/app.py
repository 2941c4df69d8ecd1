"""The commands as a group whose failures are errors of ours, so that each is one line."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import typer
from typer.core import TyperGroup

from spectrim.cli.logging import move_levels_first
from spectrim.errors import InputError, SpectrimError
from spectrim.pipeline.renamed import renamed_option

_UsageError: Any = typer.BadParameter.__base__
"""click's, wherever this version of typer keeps click."""


class Commands(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, move_levels_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            with ExitStack() as ctx.obj:  # what a command opens for as long as it runs
                return super().invoke(ctx)
        except _UsageError as error:
            place = error.ctx.command_path if error.ctx else ctx.command_path
            message = renamed_option(error.format_message()) or error.format_message()
            message = message.rstrip(".")
            raise InputError(f"{message}; see `{place} --help`") from error
        except KeyboardInterrupt as error:
            raise SpectrimError(
                "interrupted; the same command goes on from the last stored calibration step"
            ) from error
