"""trackio: a local data base with a dashboard (`trackio show`), or a Space on the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from spectrim.runtime.tracking._run import TrackedRun, library, off_standard_output, starting

REFERENCE = "https://github.com/gradio-app/trackio; TRACKIO_DIR, TRACKIO_PROJECT"


class TrackioRun:
    def __init__(self, run: Any):
        self._run = run

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        with off_standard_output():
            self._run.log(dict(figures), step=step)

    def finish(self, failed: bool) -> None:
        with off_standard_output():
            self._run.finish()


def start(run: TrackedRun) -> TrackioRun:
    trackio = library("trackio")
    with starting("trackio"):
        made = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", run.project),
            name=run.name,
            config=run.flat,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return TrackioRun(made)
