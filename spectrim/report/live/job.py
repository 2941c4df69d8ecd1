"""A cancelable background job with progress."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from spectrim.errors import InputError, SpectrimError
from spectrim.runtime.context import ProgressBar

Status = Literal["idle", "running", "done", "failed", "stopped"]


class Stopped(SpectrimError):
    """The user stopped the job."""


@dataclass(frozen=True)
class JobState:
    """`done` of `total` steps of `what`; `message` is the outcome."""

    status: Status = "idle"
    what: str = ""
    done: int = 0
    total: int = 0
    message: str = ""


class Job:
    """Runs at most one job; `work` gets a `track` that reports progress and stops it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = JobState()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> JobState:
        return self._state

    def start(self, work: Callable[[ProgressBar], str]) -> None:
        """Start `work`, which returns its closing message. Raises InputError if one runs."""
        with self._lock:
            if self._state.status == "running":
                raise InputError("a compression is running; stop it or wait for it")
            self._stop.clear()
            self._state = JobState("running", "starting")
            self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the job before its next step."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self, work: Callable[[ProgressBar], str]) -> None:
        try:
            self._state = JobState("done", message=work(self._track))
        except Stopped:
            self._state = JobState("stopped", message="stopped; nothing was written")
        except SpectrimError as error:
            self._state = JobState("failed", message=str(error))
        except Exception as error:  # the thread's only way to tell
            traceback.print_exc()
            self._state = JobState("failed", message=f"{type(error).__name__}: {error}")

    def _track(self, items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        for number, item in enumerate(items):
            if self._stop.is_set():
                raise Stopped("stopped")
            self._state = JobState("running", what, number, total)
            yield item
