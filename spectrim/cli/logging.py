"""`-q` and `-v`, anywhere among a command's words: the verbosity on standard error.

quiet: warnings and errors. verbose: the library's log (losses of training), versions, the
seconds of each stage, and at the end the time and memory of the command.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from spectrim.version import __version__

LOG = logging.getLogger("spectrim.cli")
_LEVELS = ("-q", "--quiet", "-v", "--verbose")


def move_levels_first(words: Sequence[str]) -> list[str]:
    """Move the verbosity options first, where the program reads them, up to a `--`."""
    end = words.index("--") if "--" in words else len(words)
    levels = [word for word in words[:end] if word in _LEVELS]
    others = [word for word in words[:end] if word not in _LEVELS]
    return [*levels, *others, *words[end:]]


def set_log_level(level: int) -> None:
    """Log the library's messages from this level on to standard error; warnings always."""
    logger = logging.getLogger("spectrim")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.setLevel(level)
    if level < logging.WARNING:
        logger.addHandler(logging.StreamHandler())


@contextmanager
def log_command() -> Iterator[None]:
    import torch
    import transformers

    from spectrim.runtime.memory import peak_bytes

    begun = time.monotonic()
    LOG.info(
        "spectrim %s, torch %s, transformers %s, Python %s, threads: %d",
        __version__,
        torch.__version__,
        transformers.__version__,
        platform.python_version(),
        torch.get_num_threads(),
    )
    try:
        yield
    finally:
        seconds = time.monotonic() - begun
        LOG.info("%.1f seconds, peak memory %.0f MiB", seconds, peak_bytes() / 2**20)


@contextmanager
def log_stage(what: str, count: int) -> Iterator[None]:
    begun = time.monotonic()
    yield
    LOG.info("%s: %d in %.1f seconds", what, count, time.monotonic() - begun)
