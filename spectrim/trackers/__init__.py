"""Trackers: who keeps the figures of a run beside those of other runs. One file each.

A module declares `REFERENCE` and

    start(run) -> Tracker

which opens a run of its library, with that library's own settings from the environment.
Nothing is imported before a run is started; each library is an optional extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from spectrim.registry import Registry
from spectrim.trackers._run import TrackedRun, Tracker, library
from spectrim.trackers._stages import timed

TRACKERS = Registry("tracker", "spectrim.trackers")
"""By name, the libraries that can be told; others by the entry-point group of that name."""
Tell = Callable[[Mapping[str, float], int | None], None]
"""Figures by name, and the step of their series; None for what stands at the end of a run."""
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes items on and shows progress: items, what is being done, how many."""


def untold(figures: Mapping[str, float], step: int | None = None) -> None:
    """Where nobody keeps them."""


@contextmanager
def telling(name: str | None, run: TrackedRun) -> Iterator[Tell]:
    """What figures of `run` are told to while it lasts; nobody for the name None.

    An error or an interruption ends it as failed. Raises UnknownNameError, and InputError where
    the library is missing or cannot start.
    """
    if name is None:
        yield untold
        return
    tracker: Tracker = TRACKERS.get(name).start(run)
    try:
        yield tracker.log
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=False)


__all__ = [
    "TRACKERS",
    "Tell",
    "Track",
    "TrackedRun",
    "Tracker",
    "library",
    "telling",
    "timed",
    "untold",
]
