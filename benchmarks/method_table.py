"""Method x budget on one model: the tables of docs/results.md, as `spectrim bench` makes them.

    python benchmarks/method_table.py MODEL --data TRAIN --eval TEXT [--budgets .8,.6,.4]

Its recipes are published methods as published, their allocations, structures and sequential
objectives, then OBD step by step; Hessian averaging acts below its threshold (budget 0.75)
only. More options as in `spectrim bench --help`; results go to out/method_table unless -o says
otherwise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from spectrim.cli import main

BASELINES = ("svd", "fwsvd", "asvd", "svd_llm", "afm", "gfwsvd", "obd")
IDENTITY = {"out_metric": "identity"}
SEQUENTIAL: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("SVD-LLM, shifted inputs", "svd_llm_update", IDENTITY),
    ("SAES-SVD", "saes_svd", IDENTITY),
    ("AA-SVD, anchored", "aa_svd", IDENTITY | {"original_input_weight": 1.0}),
    ("SVD-LLM + LoRA", "svd_llm_lora", {}),
)
NO_PATH = {"weight": 0.0}
PLAIN = {"layers": False, "joint": False}
LENGTH = "256"


Rows = dict[str, dict[str, Any]]
"""Recipe fields by the name of the row."""


def recipes() -> Rows:
    return published() | steps()


def published() -> Rows:
    """The family with its own factors, ranks and storage."""
    plain = {"hessian_averaging": NO_PATH, "probe": PLAIN}
    uniform = {"allocation": "uniform", "layer": "lowrank", **plain}
    llm = {"method": "svd_llm", **uniform}
    table: Rows = {
        f"{method}, uniform, lowrank": {"method": method, **uniform} for method in BASELINES
    }
    table["ASVD's search"] = llm | {"method": "asvd", "allocation": "asvd_search"}
    table["SVD-LLM V2"] = llm | {"allocation": "svd_llm_v2"}
    table["D-Rank"] = llm | {"allocation": "d_rank"}
    table["D-Rank, rebalanced"] = table["D-Rank"] | {
        "allocation_options": {"rebalance": ["q_proj", "k_proj", "v_proj"]}
    }
    table["WeLore"] = llm | {"method": "svd", "allocation": "welore"}
    table["ZS-SVD"] = llm | {"allocation": "zs_svd"}
    table["Basis Sharing"] = llm | {"sharing": {"rule": "adjacent", "keep": "all"}}
    table["CoSpaDi, orthogonal"] = llm | {"layer": "sparse_dictionary"}
    for name, refinement, options in SEQUENTIAL:
        step = {"name": refinement, "options": options}
        table[name] = llm | {"refinement": [step]}
    anchored = {"name": "aa_svd", "options": IDENTITY | {"original_input_weight": 1.0}}
    table["AA-SVD, anchored + block"] = llm | {
        "refinement": [anchored, {"name": "block_distillation"}]
    }
    return table


def steps() -> Rows:
    """OBD with what is added to it, one by one."""
    plain = {"hessian_averaging": NO_PATH, "probe": PLAIN}
    table: Rows = {}
    for layer in ("lowrank", "pivoted"):
        kind = {"layer": layer}
        table[f"obd, loss_optimal, {layer}"] = {**kind, **plain}
        table[f"+ measured curves, {layer}"] = {**kind, "hessian_averaging": NO_PATH}
        table[f"+ Hessian averaging, {layer}"] = {**kind, "probe": PLAIN}
        table[f"+ both (default), {layer}"] = kind
    table["default + saes, pivoted"] = {"refinement": [{"name": "saes_svd"}]}
    table["default + anchored, pivoted"] = {"refinement": [{"name": "aa_svd"}]}
    table["default, one basis per input"] = {
        "layer": "lowrank",
        "sharing": {"rule": "same_input"},
    }
    table["default, sparse_dictionary"] = {"layer": "sparse_dictionary"}
    return table


def run(arguments: list[str], rows: Rows, output: str) -> None:
    """`spectrim bench` with these rows. Exits as the command line does."""
    given = [*arguments, "--length", LENGTH] if "--length" not in arguments else arguments
    if not {"-o", "--output"} & set(given):
        given = [*given, "-o", output]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "recipes.yaml"
        file.write_text(yaml.safe_dump(rows, sort_keys=False), encoding="utf-8")
        sys.argv = ["spectrim", "bench", *given, "--methods", str(file)]
        main()


if __name__ == "__main__":
    run(sys.argv[1:], recipes(), "out/method_table")
