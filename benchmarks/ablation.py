"""What each stage of the recipe `best` brings, on its own and left out.

    python benchmarks/ablation.py MODEL --data TRAIN --eval TEXT --budgets 0.6

"alone" rows add one stage to SVD-LLM with uniform ranks and plain factors; "without" rows are
`best` less one stage. Both trainings read 60,000 tokens. More options as in
`spectrim bench --help`; results go to out/ablation unless -o says otherwise.
"""

from __future__ import annotations

import sys
from typing import Any

from method_table import NO_PATH, PLAIN, Rows, run

from spectrim.pipeline.presets import PRESETS

TOKENS = 60_000
_BEST = PRESETS["best"].to_dict()


def _step(name: str) -> dict[str, Any]:
    """A refinement of `best` with fewer tokens."""
    step = next(step for step in _BEST["refinement"] if step["name"] == name)
    return step | {"tokens": TOKENS, "options": step["options"] | {"tokens": TOKENS}}


_BLOCK, _END_TO_END = _step("block_distillation"), _step("distillation")
_TRAINED = {"refinement": [_BLOCK, _END_TO_END]}
_PLAIN_STEPS = [
    step | {"options": step["options"] | {"optimizer": "adamw"}}
    for step in (_BLOCK, _END_TO_END)
]
_SQUARES = _BLOCK | {"options": _BLOCK["options"] | {"out_metric": "identity"}}
_FOUNDATION: dict[str, Any] = {
    "method": "svd_llm",
    "allocation": "uniform",
    "layer": "lowrank",
    "hessian_averaging": NO_PATH,
    "probe": PLAIN,
}
_RANKS = {"allocation": "loss_optimal"}
ALONE: Rows = {
    "SVD-LLM": {},
    "gradient covariance": {"method": "obd"},
    "loss-optimal ranks": _RANKS,
    "loss-optimal ranks, measured curves": _RANKS | {"probe": _BEST["probe"]},
    "pivoted storage": {"layer": "pivoted"},
    "block training": {"refinement": [_BLOCK]},
    "end-to-end training": {"refinement": [_END_TO_END]},
}
WITHOUT: Rows = {
    "gradient covariance": {"method": "svd_llm"},
    "loss-optimal ranks": {"allocation": "uniform"},
    "measured curves": {"probe": PLAIN},
    "Hessian averaging": {"hessian_averaging": NO_PATH},
    "pivoted storage": {"layer": "lowrank"},
    "covariances' bases": {"refinement": _PLAIN_STEPS},
    "the blocks' output metric": {"refinement": [_SQUARES, _END_TO_END]},
    "block training": {"refinement": [_END_TO_END]},
    "end-to-end training": {"refinement": [_BLOCK]},
    "any training": {"refinement": []},
}


def recipes() -> Rows:
    alone = {f"alone: {name}": _FOUNDATION | row for name, row in ALONE.items()}
    without = {f"best without {name}": _TRAINED | row for name, row in WITHOUT.items()}
    return alone | {"best": _TRAINED} | without


if __name__ == "__main__":
    run(sys.argv[1:], recipes(), "out/ablation")
