"""The cost of a row: seconds of each stage, and the memory on top of what was in use."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from spectrim.runtime.context import ProgressBar
from spectrim.runtime.memory import trim_memory

_SECONDS_BETWEEN_SAMPLES = 0.01


class PeakMemory:
    """Resident memory of this process during a block: at the start, and at its highest.

    Sampled by a thread every hundredth of a second, because the system's own peak never falls.
    Freed memory is first returned to the system if the C library can do that (glibc).
    """

    def __init__(self) -> None:
        self.start = self.peak = 0
        self._process = psutil.Process()
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        gc.collect()
        trim_memory()
        self.start = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_SAMPLES):
            self._sample()

    def _sample(self) -> None:
        self.peak = max(self.peak, self._process.memory_info().rss)


def timer_for(device: torch.device) -> Callable[[], float]:
    """Return a clock of the processor time of all threads, or the wall clock for accelerators.

    Other programs do not lengthen processor time.
    """
    return time.process_time if device.type == "cpu" else time.perf_counter


class StageTimer:
    """Seconds by stage; `with clock("compress"):` adds to one."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = self._timer()
        try:
            yield
        finally:
            spent = self._timer() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


class FactorizeTimer:
    """The seconds of `factorize` by stage, from the steps that it tracks.

    The time before decomposing is calibration (passes that were not in the cache, and reading
    the others), the time after it measuring. Decomposing and measuring are missing if the
    decomposition was in the cache.
    """

    def __init__(self, track: ProgressBar, timer: Callable[[], float]):
        self._track = track
        self._timer = timer
        self._start = timer()
        self._decomposing: tuple[float, float] | None = None

    def track(self, items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        if what != "decomposing":
            yield from self._track(items, what, total)
            return
        begin = self._timer()
        yield from self._track(items, what, total)
        self._decomposing = (begin, self._timer())

    def seconds(self) -> dict[str, float]:
        """Return the seconds; to be called when `factorize` has returned."""
        now = self._timer()
        if self._decomposing is None:
            return {"calibrate": now - self._start}
        begin, end = self._decomposing
        return {
            "calibrate": begin - self._start,
            "decompose": end - begin,
            "measure": now - end,
        }
