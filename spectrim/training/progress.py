"""What a refinement is given to show progress, to keep its state, and to tell its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from spectrim.runtime.cache import Cache
from spectrim.runtime.tracking import MetricLogger, null_logger
from spectrim.statistics import Calibration


def _unseen(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class RunContext:
    """`losses` is filled by the refinement: the loss of every step, by stage. `calibration`
    holds the original's statistics, for a refinement that requires some. `log_metrics` is
    called with the figures of every step of a training, as it goes."""

    cache: Cache = field(default_factory=lambda: Cache(None))
    track: Callable[[Iterable[Any], str, int], Iterable[Any]] = _unseen
    seconds_between_saves: float = 60.0
    losses: dict[str, list[float]] = field(default_factory=dict)
    calibration: Calibration | None = None
    log_metrics: MetricLogger = null_logger
