"""Trackers: who keeps the figures of a run beside those of other runs. One file each.

A module declares `REFERENCE` and

    start(run) -> Tracker

which opens a run of its library, with that library's own settings from the environment.
Nothing is imported before a run is started; each library is an optional extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spectrim.registry import Registry
from spectrim.runtime.context import MetricLogger, null_logger
from spectrim.runtime.tracking._run import TrackedRun, Tracker, library
from spectrim.runtime.tracking._stages import with_stage_times

TRACKERS = Registry("tracker", "spectrim.runtime.tracking")
"""By name, the libraries that can be told; others by the entry-point group of that name."""


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
    "TrackedRun",
    "Tracker",
    "library",
    "open_tracker",
    "with_stage_times",
]
