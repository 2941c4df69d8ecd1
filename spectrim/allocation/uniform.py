"""The same kept fraction for every layer: the largest rank whose cost fits it."""

from __future__ import annotations

import numpy as np

from spectrim.allocation._request import AllocationRequest
from spectrim.registry import NoOptions

REQUIRES: tuple[str, ...] = ()
REFERENCE = "the common choice of all low-rank methods"


def allocate(request: AllocationRequest, options: NoOptions) -> dict[str, int | None]:
    ranks: dict[str, int | None] = {}
    for curve in request.curves:
        choices = request.choices(curve)
        allowed = int(request.budget * curve.dense_cost + 1e-9)
        fitting = int(np.searchsorted(choices.costs, allowed, side="right")) - 1
        rank = int(choices.ranks[max(fitting, 0)])
        ranks[curve.name] = rank or None
    return ranks
