"""Method x budget on one model: the tables of docs/results.md, as `spectrim bench` makes them.

    python benchmarks/method_table.py MODEL --data TRAIN --eval TEXT [--budgets .8,.6,.4]

Its recipes are published methods as published (uniform ranks, plain factors), then OBD step
by step; the path average acts below its threshold (budget 0.75) only. More options as in
`spectrim bench --help`; results go to out/method_table unless -o says otherwise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from spectrim.cli import main

BASELINES = ("svd", "fwsvd", "asvd", "svd_llm", "afm", "gfwsvd", "obd")
NO_PATH = {"weight": 0.0}
PLAIN = {"layers": False, "joint": False}
LENGTH = "256"


def recipes() -> dict[str, dict[str, Any]]:
    """Recipe fields by the name of the row."""
    plain = {"path": NO_PATH, "measure": PLAIN}
    uniform = {"allocation": "uniform", "layer": "lowrank"}
    table: dict[str, dict[str, Any]] = {
        f"{method}, uniform, lowrank": {"method": method, **uniform, **plain}
        for method in BASELINES
    }
    for layer in ("lowrank", "pivoted"):
        kind = {"layer": layer}
        table[f"obd, loss_optimal, {layer}"] = {**kind, **plain}
        table[f"+ measured curves, {layer}"] = {**kind, "path": NO_PATH}
        table[f"+ path average, {layer}"] = {**kind, "measure": PLAIN}
        table[f"+ both (default), {layer}"] = kind
    return table


def run(arguments: list[str]) -> None:
    """Exits as the command line does."""
    given = [*arguments, "--length", LENGTH] if "--length" not in arguments else arguments
    if not {"-o", "--output"} & set(given):
        given = [*given, "-o", "out/method_table"]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "recipes.yaml"
        file.write_text(yaml.safe_dump(recipes(), sort_keys=False), encoding="utf-8")
        sys.argv = ["spectrim", "bench", *given, "--methods", str(file)]
        main()


if __name__ == "__main__":
    run(sys.argv[1:])
