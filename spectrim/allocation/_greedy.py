"""Greedy steps from the smallest plan upward: each moves one layer to its next choice.

An allocator assigns a key to every step. Steps are taken in the order of their keys while they
fit the budget; after the first that does not, whatever still fits is taken in the same order,
so that the remainder is spent too. A layer whose next step does not fit stops there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spectrim.allocation._request import AllocationRequest, LayerCurve, RankChoices

Floats = NDArray[np.float64]


def climb(
    request: AllocationRequest, choices: Sequence[RankChoices], keys: Sequence[Floats]
) -> dict[str, int | None]:
    """Take steps in the order of keys[l][j], the key of layer l's step from choice j to j + 1.

    A step comes no earlier than the ones below it; equal keys go in the layers' order.
    """
    picked = _climbed(request.weights, choices, keys)
    return {
        curve.name: int(choice.ranks[index]) or None
        for curve, choice, index in zip(request.curves, choices, picked, strict=True)
    }


def proportional(
    request: AllocationRequest, choices: Sequence[RankChoices], wanted: Floats
) -> dict[str, int | None]:
    """Return costs as close to `wanted` (weights per layer) as the choices allow.

    The next step goes to the layer that would then have the smallest share of `wanted`: all
    reach it as far as the budget goes, and the remainder is shared in proportion.
    """
    least = 1e-9 * float(np.max(wanted))
    keys = [
        choice.costs[1:] / max(float(want), least, 1e-300)
        for choice, want in zip(choices, wanted, strict=True)
    ]
    return climb(request, choices, keys)


def types_of(curves: Sequence[LayerCurve]) -> list[list[int]]:
    """Return the positions of the layers of each type: equal shape and name up to numbers.

    Numbers are whole parts of the dotted name: blocks and experts count as one type.
    """
    types: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for position, curve in enumerate(curves):
        name = re.sub(r"(?<![^.])\d+(?![^.])", "", curve.name)
        types.setdefault((name, curve.shape), []).append(position)
    return list(types.values())


def _climbed(budget: int, choices: Sequence[RankChoices], keys: Sequence[Floats]) -> list[int]:
    layers = np.repeat(np.arange(len(choices)), [len(key) for key in keys])
    extra = np.concatenate([np.diff(choice.costs) for choice in choices])
    order = np.argsort(np.concatenate([np.maximum.accumulate(k) for k in keys]), kind="stable")
    layers, extra = layers[order], extra[order]
    left = budget - sum(int(choice.costs[0]) for choice in choices)
    sure = int(np.searchsorted(np.cumsum(extra), left, side="right"))
    picked = np.bincount(layers[:sure], minlength=len(choices))
    left -= int(extra[:sure].sum())
    stopped: set[int] = set()
    for layer, cost in zip(layers[sure:].tolist(), extra[sure:].tolist(), strict=True):
        if cost > left:
            stopped.add(layer)
        elif layer not in stopped:
            picked[layer] += 1
            left -= cost
    return picked.tolist()
