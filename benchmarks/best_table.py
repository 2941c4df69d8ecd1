"""The recipes `default`, `closed_form` and `best`, the last one also after its first stage.

    python benchmarks/best_table.py MODEL --data TRAIN --eval TEXT [--budgets .8,.6,.4]

More options as in `spectrim bench --help`; results go to out/best_table unless -o says
otherwise.
"""

from __future__ import annotations

import sys

from method_table import Rows, run

from spectrim.pipeline.presets import PRESETS

_STAGES = PRESETS["best"].to_dict()["refinement"]
ROWS: Rows = {
    "SVD-LLM": {"method": "svd_llm", "allocation": "uniform", "layer": "lowrank"},
    "default": {},
    "closed_form": {"refinement": PRESETS["closed_form"].to_dict()["refinement"]},
    "best, block alone": {"refinement": _STAGES[:1]},
    "best": {"refinement": _STAGES},
}

if __name__ == "__main__":
    run(sys.argv[1:], ROWS, "out/best_table")
