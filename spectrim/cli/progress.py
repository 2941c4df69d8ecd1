"""Progress on standard error: bars on a terminal, lines elsewhere.

    step 2/4 measuring curves: 60 of 210 in 1:10, about 2:50 left

The number of steps is known where a run was estimated; lines appear for stages that take
longer than `QUIET` seconds, at most one in `BETWEEN` seconds and in a twentieth of the stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from spectrim.cli.console import NOTES, note
from spectrim.cli.logging import log_stage

QUIET, BETWEEN = 2.0, 15.0
MOST_LINES = 20
"""Lines become rarer, so that a long stage has about as many for every doubling of its time."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class StageProgress:
    """A `ProgressBar` for the stages of one run, numbered if they are known before."""

    steps: Sequence[str] = ()
    clock: Clock = time.monotonic

    def __call__(self, items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        label = f"{self._number(what)}{what}"
        with log_stage(what, total):
            if NOTES.quiet:
                yield from items
            elif NOTES.is_terminal:
                yield from _bar(items, label, total)
            else:
                yield from self._lines(items, label, total)

    def _number(self, what: str) -> str:
        if what not in self.steps:
            return ""
        return f"step {self.steps.index(what) + 1}/{len(self.steps)} "

    def _lines(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        begun = self.clock()
        told = begun + QUIET - BETWEEN
        done, shown = 0, False
        for item in items:
            yield item
            done, now = done + 1, self.clock()
            if now - told >= max(BETWEEN, (now - begun) / MOST_LINES) and done < total:
                left = (now - begun) / done * (total - done)
                state = f"{done:,} of {total:,} in {minutes(now - begun)}"
                note(f"{label}: {state}, about {minutes(left)} left")
                told, shown = now, True
        if shown:
            note(f"{label}: {done:,} in {minutes(self.clock() - begun)}")


track = StageProgress()


def _bar(items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=NOTES) as progress:
        yield from progress.track(items, total=total, description=label)


def minutes(seconds: float) -> str:
    """Return seconds as "0:05" or "1:02:03"."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    start = f"{hours}:{rest // 60:02d}" if hours else str(rest // 60)
    return f"{start}:{rest % 60:02d}"
