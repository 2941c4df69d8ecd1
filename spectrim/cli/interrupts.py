"""End commands cleanly: all on SIGTERM, servers on SIGINT even where it was ignored."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def raise_on_termination() -> None:
    """Turn SIGTERM into `Terminated`; outside of the main thread signals stay as they are."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    try:
        signal.signal(signal.SIGTERM, terminate)
    except ValueError:
        return


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt, also in a job that a shell started to ignore it."""
    try:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
