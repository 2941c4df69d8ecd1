"""The context of a long run: where results are cached, and where progress and metrics go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spectrim.runtime.cache import Cache

NO_CACHE = Cache(None)
ProgressBar = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Takes items, a description and their number; yields the items and shows progress."""
MetricLogger = Callable[[Mapping[str, float], int | None], None]
"""Takes metrics by name, and the step of their series; None for metrics of the whole run."""


def silent(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """Return `items` and show nothing."""
    return items


def null_logger(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Discard the metrics."""


@dataclass(frozen=True)
class RunContext:
    """The last argument of every long verb.

    Attributes:
        cache: stores finished results and snapshots of unfinished ones.
        progress: shows a progress bar for each stage.
        log_metrics: receives the metrics of training steps and of the whole run.
        fsdp: of several processes each keeps its share of the weights while calibrating.
    """

    cache: Cache = NO_CACHE
    progress: ProgressBar = silent
    log_metrics: MetricLogger = null_logger
    fsdp: bool = False
