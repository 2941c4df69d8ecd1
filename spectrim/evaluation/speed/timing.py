"""Comparable times on a shared machine: interleaved runs, medians of ratios.

On a CPU with one thread the clock counts the processor time of this process; with more
threads, and on a GPU, it is the wall clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

Run = Callable[[], Any]
SLOWEST_ROUND = 3.0
"""Seconds of a round after which fewer rounds than asked for must do, though at least three."""


@dataclass(frozen=True)
class Times:
    """Seconds of every repetition, by name; the i-th of all were measured in one round."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def speedup(self, name: str, base: str) -> float:
        """Return the median over rounds of base's time by `name`'s in the same round."""
        pairs = zip(self.seconds[base], self.seconds[name], strict=True)
        return median(slow / fast for slow, fast in pairs)


def time_interleaved(runs: Mapping[str, Run], rounds: int, device: torch.device) -> Times:
    """Time every run once per round, in turn, after a warm-up round."""
    for run in runs.values():
        synchronize(device, run)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    order = list(runs)
    for done in range(rounds):
        for name in order if done % 2 == 0 else reversed(order):
            seconds[name].append(time_once(runs[name], device))
        if done >= 2 and time.perf_counter() - started > SLOWEST_ROUND * rounds:
            break
    return Times({name: tuple(values) for name, values in seconds.items()})


def time_once(run: Run, device: torch.device) -> float:
    """Return the seconds until the device has finished, without garbage collection."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        clock = clock_of(device)
        synchronize(device)
        start = clock()
        synchronize(device, run)
        return clock() - start
    finally:
        if collecting:
            gc.enable()


def clock_of(device: torch.device) -> Callable[[], float]:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def synchronize(device: torch.device, run: Run | None = None) -> None:
    if run is not None:
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
