"""A tracker of one's own: every figure of a fine-tuning as a line of a CSV file.

    spectrim compress reference -o smaller --budget 0.6
    python examples/own_tracker.py smaller --data text.txt --output tuned --csv figures.csv

A module with `REFERENCE` and `start`, as this is, becomes `--track NAME` of every command by an
entry point of the group `spectrim.runtime.tracking`:

    [project.entry-points."spectrim.runtime.tracking"]
    csv = "own_tracker"
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping

import torch

import spectrim
from spectrim.runtime.context import RunContext
from spectrim.runtime.tracking import TrackedRun

REFERENCE = "FIGURES_CSV names the file"


class CsvRun:
    """Lines `figure, step, value`; the step is empty for what stands at the end."""

    def __init__(self, run: TrackedRun, path: str):
        self._file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._lines = csv.writer(self._file)
        self._lines.writerow(("figure", "step", "value"))
        for name, value in run.flat.items():
            self._lines.writerow((name, "", value))

    def log(self, figures: Mapping[str, float], step: int | None = None) -> None:
        for name, value in figures.items():
            self._lines.writerow((name, "" if step is None else step, value))

    def finish(self, failed: bool) -> None:
        self._lines.writerow(("failed", "", failed))
        self._file.close()


def start(run: TrackedRun) -> CsvRun:
    return CsvRun(run, os.environ.get("FIGURES_CSV", "figures.csv"))


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
    run = CsvRun(TrackedRun(f"finetune {given.model}", vars(settings)), given.csv)
    losses: dict[str, list[float]] = {}

    def log_metrics(figures: Mapping[str, float], step: int | None = None) -> None:
        run.log(figures, step)
        for name, value in figures.items():
            losses.setdefault(name, []).append(value)

    context = RunContext(log_metrics=log_metrics)
    try:
        tuned = spectrim.finetune(model, tokenizer, settings, context)
    except BaseException:
        run.finish(failed=True)
        raise
    run.finish(failed=False)
    spectrim.save(tuned, tokenizer, given.output)
    return losses


if __name__ == "__main__":
    main()
