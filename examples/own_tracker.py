"""A tracker of one's own: every metric of a fine-tuning as a line of a CSV file.

    spectrim compress reference -o smaller --budget 0.6
    python examples/own_tracker.py smaller --data text.txt --output tuned --csv figures.csv

A subclass of accelerate's `GeneralTracker`, as this is, becomes `--track NAME` of every command
by an entry point of the group `spectrim.trackers`:

    [project.entry-points."spectrim.trackers"]
    csv = "own_tracker:CsvTracker"
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.tracking import GeneralTracker

import spectrim
from spectrim.runtime.context import RunContext


class CsvTracker(GeneralTracker):
    """Lines `figure, step, value`; the step is empty for what stands at the end."""

    name = "csv"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, run_name: str, path: str | None = None):
        super().__init__()
        self.path = path or os.environ.get("FIGURES_CSV", "figures.csv")

    def start(self) -> None:
        self._file = open(self.path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._lines = csv.writer(self._file)
        self._lines.writerow(("figure", "step", "value"))

    @property
    def tracker(self) -> Any:
        return self._lines

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.log(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        for name, value in values.items():
            self._lines.writerow((name, "" if step is None else step, value))

    def finish(self) -> None:
        self._file.close()


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--csv", default="figures.csv")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--length", type=int, default=128)
    given = parser.parse_args(arguments)
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    settings = spectrim.FinetuneSettings(
        data=given.data, steps=given.steps, length=given.length, batch_size=8
    )
    tracker = CsvTracker(f"finetune {given.model}", given.csv)
    tracker.start()
    tracker.store_init_configuration(vars(settings))
    losses: dict[str, list[float]] = {}

    def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
        tracker.log(metrics, step)
        for name, value in metrics.items():
            losses.setdefault(name, []).append(value)

    try:
        context = RunContext(log_metrics=log_metrics)
        tuned = spectrim.finetune(model, tokenizer, settings, context)
    finally:
        tracker.finish()
    spectrim.save(tuned, tokenizer, given.output)
    return losses


if __name__ == "__main__":
    main()
