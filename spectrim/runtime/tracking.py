"""Trackers: the metrics of a run in trackio, wandb, mlflow or another library of accelerate's.

A tracker of one's own is a subclass of `accelerate.tracking.GeneralTracker` in the entry-point
group `spectrim.trackers`; it is made with the name of the run. Settings of a library come from
its own environment variables (TRACKIO_PROJECT, WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from spectrim.errors import InputError, UnknownNameError
from spectrim.runtime.context import MetricLogger, ProgressBar, null_logger

GROUP = "spectrim.trackers"
_LONGEST = 500
"""Characters of a setting that every library takes."""
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
"""In a metric's name, for mlflow."""
_COUNT = re.compile(r"\s+\d+(/| of )\d+$")


@dataclass(frozen=True)
class TrackedRun:
    """A run's name, its settings as nested mappings of plain values, and its project."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    project: str = "spectrim"

    @property
    def flat(self) -> dict[str, Any]:
        """Return the settings with dotted names, without those that are None or empty."""
        return dict(_flat("", self.settings))


@contextmanager
def open_tracker(name: str | None, run: TrackedRun) -> Iterator[MetricLogger]:
    """Yield a logger for the metrics of `run`; without a name it discards them.

    An error or an interruption ends the run as failed.

    Raises:
        UnknownNameError: there is no such tracker.
        InputError: its library is missing or cannot start a run.
    """
    if name is None:
        yield null_logger
        return
    tracker = _start(name, run)
    try:
        yield _logger(tracker)
    except BaseException:
        _finish(tracker, failed=True)
        raise
    _finish(tracker, failed=False)


def with_stage_times(progress: ProgressBar, log_metrics: MetricLogger) -> ProgressBar:
    """Return a progress bar that also logs how long each stage took, summed over its parts."""
    seconds: dict[str, float] = {}

    def timed(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        started = time.monotonic()
        yield from progress(items, what, total)
        stage = _COUNT.sub("", what.partition(",")[0])
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started
        log_metrics({f"seconds/{stage}": seconds[stage]}, None)

    return timed


def _classes() -> dict[str, Callable[[], Any]]:
    """Return a function that returns the class of each tracker."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    classes = {str(kind): lambda cls=cls: cls for kind, cls in LOGGER_TYPE_TO_CLASS.items()}
    return classes | {point.name: point.load for point in entry_points(group=GROUP)}


def _start(name: str, run: TrackedRun) -> Any:
    from accelerate import PartialState

    classes = _classes()
    if name not in classes:
        raise UnknownNameError("tracker", name, classes)
    try:
        with redirect_stdout(sys.stderr):  # results stand alone on standard output
            PartialState()  # accelerate's loggers need it
            cls = classes[name]()
            tracker = cls(**_arguments(name, cls, run))
            tracker.start()
            values = {setting: _plain(value) for setting, value in run.flat.items()}
            tracker.store_init_configuration(values)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed ({error}): pip install '{name}', or all trackers by "
            "pip install 'spectrim[trackers]'"
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{name} cannot start a run: {lines[0]}") from error
    return tracker


def _arguments(name: str, cls: Any, run: TrackedRun) -> dict[str, Any]:
    project = os.environ.get(f"{name.upper()}_PROJECT", run.project)
    quiet: dict[str, Any]
    if name == "trackio":
        quiet = {"auto_log_gpu": False, "auto_log_cpu": False}
        return {"run_name": project, "name": run.name, **quiet}
    if name == "wandb":
        settings = {"console": "off", "silent": True}
        return {"run_name": project, "name": run.name, "settings": settings}
    if name == "mlflow":
        return {"experiment_name": run.project, "run_name": run.name}
    places = {"logging_dir": os.curdir} if cls.requires_logging_directory else {}
    return {"run_name": run.name, **places}


def _logger(tracker: Any) -> MetricLogger:
    def log(metrics: Mapping[str, float], step: int | None = None) -> None:
        with redirect_stdout(sys.stderr):
            if tracker.name == "wandb":
                _log_to_wandb(tracker, metrics, step)
            elif tracker.name == "mlflow":
                named = {_FORBIDDEN.sub("_", key): value for key, value in metrics.items()}
                tracker.log(named, step=step)
            else:
                tracker.log(dict(metrics), step=step)

    return log


def _log_to_wandb(tracker: Any, metrics: Mapping[str, float], step: int | None) -> None:
    """Log steps as metrics: wandb drops entries with a lower step than an earlier one."""
    if step is None:
        tracker.tracker.summary.update(dict(metrics))
        return
    for name in metrics:
        tracker.tracker.define_metric(name, step_metric=f"{name} step")
    tracker.log({**metrics, **{f"{name} step": step for name in metrics}})


def _finish(tracker: Any, failed: bool) -> None:
    with redirect_stdout(sys.stderr):
        if failed and tracker.name == "wandb":
            tracker.tracker.finish(exit_code=1)
            return
        if failed and tracker.name == "mlflow":
            import mlflow

            mlflow.end_run("FAILED")
            return
        if failed:
            tracker.log({"failed": 1.0})
        tracker.finish()


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float) else str(value)[:_LONGEST]


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif value not in (None, [], ()):
            yield f"{prefix}{name}", value
