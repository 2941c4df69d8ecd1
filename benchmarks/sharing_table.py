"""Which layers share a basis, by each rule at equal bytes.

    python benchmarks/sharing_table.py MODEL --data TRAIN --eval TEXT [--budgets 0.6]

Every row is OBD with loss-optimal ranks on plain factors, `accept: all` so that what a rule
proposes is what is measured, and once `accept: cheaper` (the default). Probing and Hessian
averaging are off. More options as in `spectrim bench --help`; results go to out/sharing_table
unless -o says otherwise.
"""

from __future__ import annotations

import sys

from method_table import NO_PATH, Rows, run

RULES = ("adjacent", "same_input", "clustered", "affinity", "coding_rate")
NO_PROBE = {"per_layer": False, "joint": False}


def recipes() -> Rows:
    plain = {"layer": "lowrank", "hessian_averaging": NO_PATH, "probe": NO_PROBE}
    table: Rows = {"no sharing": plain}
    for accept in ("all", "cheaper"):
        for rule in RULES:
            sharing = {"rule": rule, "accept": accept}
            table[f"{rule}, {accept}"] = plain | {"sharing": sharing}
    return table


if __name__ == "__main__":
    run(sys.argv[1:], recipes(), "out/sharing_table")
