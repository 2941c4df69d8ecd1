"""What a tracker is told when a run begins, and what it does from then on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, Protocol

from spectrim.errors import InputError


@dataclass(frozen=True)
class TrackedRun:
    """name: of the run; settings: what it was asked for, nested mappings of plain values."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    project: str = "spectrim"

    @property
    def flat(self) -> dict[str, Any]:
        """The settings with dotted names, without those that are None or empty."""
        return dict(_flat("", self.settings))


class Tracker(Protocol):
    """An open run of a library."""

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        """Figures of a step, or with None those of the whole run."""

    def finish(self, failed: bool) -> None:
        """No figure follows."""


def library(name: str) -> Any:
    """The module. Raises InputError where it is not installed."""
    try:
        with off_standard_output():
            return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed ({error}): pip install '{name}', or all trackers by "
            "pip install 'spectrim[trackers]'"
        ) from error


@contextmanager
def off_standard_output() -> Iterator[None]:
    """What a library prints goes to standard error: our results stand alone on the other."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def starting(name: str) -> Iterator[None]:
    """Raises InputError for whatever kept the library from opening a run."""
    try:
        with off_standard_output():
            yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{name} cannot start a run: {lines[0]}") from error


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif value not in (None, [], ()):
            yield f"{prefix}{name}", value
