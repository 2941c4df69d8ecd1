"""The seconds of every stage, from the progress bars that the stages draw."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_COUNT = re.compile(r"\s+\d+(/| of )\d+$")


def with_stage_times(
    track: Callable[[Iterable[Any], str, int], Iterable[Any]],
    log_metrics: Callable[[Mapping[str, float], int | None], None],
) -> Callable[[Iterable[Any], str, int], Iterable[Any]]:
    """`track`, which also tells how long the stage took, a stage of several parts their sum."""
    seconds: dict[str, float] = {}

    def tracked(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        started = time.monotonic()
        yield from track(items, what, total)
        stage = _COUNT.sub("", what.partition(",")[0])
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started
        log_metrics({f"seconds/{stage}": seconds[stage]}, None)

    return tracked
