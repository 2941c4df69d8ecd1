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
from spectrim.runtime.tracking._run import TrackedRun, Tracker, library
from spectrim.runtime.tracking._stages import with_stage_times

TRACKERS = Registry("tracker", "spectrim.runtime.tracking")
"""By name, the libraries that can be told; others by the entry-point group of that name."""
MetricLogger = Callable[[Mapping[str, float], int | None], None]
"""Figures by name, and the step of their series; None for what stands at the end of a run."""
ProgressBar = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes items on and shows progress: items, what is being done, how many."""


def null_logger(figures: Mapping[str, float], step: int | None = None) -> None:
    """Where nobody keeps them."""


@contextmanager
def open_tracker(name: str | None, run: TrackedRun) -> Iterator[MetricLogger]:
    """What figures of `run` are told to while it lasts; nobody for the name None.

    An error or an interruption ends it as failed. Raises UnknownNameError, and InputError where
    the library is missing or cannot start.
    """
    if name is None:
        yield null_logger
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
    "MetricLogger",
    "ProgressBar",
    "TrackedRun",
    "Tracker",
    "library",
    "null_logger",
    "open_tracker",
    "with_stage_times",
]
