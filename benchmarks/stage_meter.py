"""What each stage of a run took: time, processor time, memory and disk at most."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ProgressBar = Callable[[Iterable[Any], str, int], Iterable[Any]]
SECONDS_BETWEEN_LOOKS = 2.0


@dataclass
class StageMeter:
    """Stands in for a progress bar. rows: a figure of each stage by its name; what comes
    after a stage and before the next is "after STAGE"."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    disk_mib: float = 0.0
    _since: tuple[float, float] = (0.0, 0.0)
    _name: str = "opening"

    def __post_init__(self) -> None:
        self._since = _clocks()
        threading.Thread(target=self._watch_disk, daemon=True).start()

    def track(self, items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        """Calibrating is told apart: forward, the loss, backward."""
        self.begin(what)
        for number, item in enumerate(items):
            yield item
            if what == "calibrating" and number + 1 in (total // 2, total // 2 + 1):
                self.begin(what + (", the ends" if 2 * number < total - 1 else ", backward"))
        self.begin(f"after {what}")

    def begin(self, name: str) -> None:
        now = _clocks()
        row = self.rows.setdefault(self._name, {"seconds": 0.0, "cpu_seconds": 0.0})
        row["seconds"] += now[0] - self._since[0]
        row["cpu_seconds"] += now[1] - self._since[1]
        row["peak_mib"] = max(_peak_mib(), row.get("peak_mib", 0.0))
        self._since, self._name = now, name
        Path("/proc/self/clear_refs").write_text("5")

    def _watch_disk(self) -> None:
        while True:
            found = Path(tempfile.gettempdir()).glob("spectrim-*/**/*.safetensors")
            self.disk_mib = max(self.disk_mib, sum(map(_size, found)) / 2**20)
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
