"""Weights & Biases: every series over steps of its own; WANDB_MODE=offline keeps it local."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from spectrim.runtime.tracking._run import TrackedRun, library, off_standard_output, starting

REFERENCE = "https://docs.wandb.ai; WANDB_PROJECT, WANDB_MODE, WANDB_DIR"


class WandbRun:
    """A step of the library never goes back, one of ours begins anew with each series: it is
    therefore logged as a figure `NAME step`, which the series is drawn over."""

    def __init__(self, run: Any):
        self._run = run
        self._known: set[str] = set()

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        with off_standard_output():
            if step is None:
                self._run.summary.update(dict(figures))
                return
            for name in figures.keys() - self._known:
                self._known.add(name)
                self._run.define_metric(name, step_metric=f"{name} step")
            self._run.log({**figures, **{f"{name} step": step for name in figures}})

    def finish(self, failed: bool) -> None:
        with off_standard_output():
            self._run.finish(exit_code=int(failed))


def start(run: TrackedRun) -> WandbRun:
    wandb = library("wandb")
    with starting("wandb"):
        made = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.project),
            name=run.name,
            config=run.flat,
            settings=wandb.Settings(console="off", silent=True),
        )
    return WandbRun(made)
