"""MLflow: parameters, figures and the end of a run, by default in a local `mlflow.db`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from spectrim.runtime.tracking._run import TrackedRun, library, off_standard_output, starting

REFERENCE = "https://mlflow.org; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME"
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
_LONGEST = 500
"""Characters of a parameter that every store of the library takes."""


class MlflowRun:
    def __init__(self, library: Any, identifier: str):
        self._library = library
        self._identifier = identifier

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        named = {_FORBIDDEN.sub("_", name): value for name, value in figures.items()}
        with off_standard_output():
            self._library.log_metrics(named, step=step, run_id=self._identifier)

    def finish(self, failed: bool) -> None:
        with off_standard_output():
            self._library.end_run("FAILED" if failed else "FINISHED")


def start(run: TrackedRun) -> MlflowRun:
    mlflow = library("mlflow")
    with starting("mlflow"):
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            mlflow.set_experiment(run.project)
        begun = mlflow.start_run(run_name=run.name)
        parameters = {name: str(value)[:_LONGEST] for name, value in run.flat.items()}
        mlflow.log_params(parameters)
    return MlflowRun(mlflow, begun.info.run_id)
