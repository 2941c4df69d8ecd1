"""The setup of every command after its options are parsed."""

from __future__ import annotations

from typing import Any

from transformers.utils import logging

from spectrim.cli import console
from spectrim.cli.logging import log_command
from spectrim.cli.threads import leave_busy_cores
from spectrim.cli.torchrun import check_shared


def start(context: Any) -> None:
    """Set verbosity and threads. Raises InputError for a command that needs one process."""
    root = context.find_root()
    check_shared(root.invoked_subcommand)
    console.set_level(*context.meta.get("spectrim.level", (False, False)))
    logging.disable_progress_bar()
    leave_busy_cores()
    root.obj.enter_context(log_command())
