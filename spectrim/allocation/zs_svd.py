"""ZS-SVD: drop components so that their first-order effects on the loss cancel.

    effect_i = -left_i^T G right_i^T,   G = E[g x^T]

is the change of the loss, to first order, when component i of a layer is dropped; it may be
negative. From full rank on, every layer offers its last kept component. While the sum of the
effects so far is at most zero, the smallest that is not negative is dropped, else the negative
one nearest to zero (of the other sign where there is none), until the stored weights meet the
budget.

Components leave a layer in the order of its spectrum, as in the paper: what is kept is always
a prefix. Components dropped before a layer's factors are smaller than its dense weight save
nothing yet, and a layer that ends there is left dense. Ranks that are multiples of n drop n
components at a time, with the sum of their effects.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from spectrim.allocation._greedy import Floats
from spectrim.allocation._request import AllocationRequest, LayerCurve
from spectrim.errors import InputError
from spectrim.registry import NoOptions

REQUIRES: tuple[str, ...] = ("mean_gradient",)
REFERENCE = "Abbasi et al., 2026, arXiv:2602.02848"


def allocate(request: AllocationRequest, options: NoOptions) -> dict[str, int | None]:
    """Return the ranks. Raises InputError if the signed effects were not gathered."""
    ladders = [_Ladder.of(request, curve) for curve in request.curves]
    offered = _Offered(ladders)
    spent, total = request.dense_cost, 0.0
    while spent > request.weights:
        position = offered.pop(total <= 0)
        ladder = ladders[position]
        total += ladder.effect
        spent -= ladder.descend()
        offered.push(position)
    return {
        curve.name: ladder.rank for curve, ladder in zip(request.curves, ladders, strict=True)
    }


@dataclass
class _Ladder:
    """One layer, dense and then by falling rank: effects[j] of step j, costs[j] before it."""

    ranks: list[int]
    costs: list[int]
    effects: Floats
    dense: int
    at: int = 0

    @classmethod
    def of(cls, request: AllocationRequest, curve: LayerCurve) -> _Ladder:
        full = len(curve.loss) - 1
        lowest = int(request.choices(curve).ranks[0]) or full
        below = range(full - full % request.multiple, lowest - 1, -request.multiple)
        ranks, dense = [full, *below], curve.dense_cost
        sums = np.append(0.0, np.cumsum(_signed(curve)))[ranks]
        costs = [dense, *(min(request.cost(curve, rank), dense) for rank in below)]
        return cls(ranks, costs, sums[:-1] - sums[1:], dense)

    @property
    def rank(self) -> int | None:
        return self.ranks[self.at] if self.costs[self.at] < self.dense else None

    @property
    def effect(self) -> float:
        return float(self.effects[self.at])

    @property
    def ended(self) -> bool:
        return self.at == len(self.effects)

    def descend(self) -> int:
        """Take one step down and return the weights that it saves."""
        self.at += 1
        return self.costs[self.at - 1] - self.costs[self.at]


@dataclass
class _Offered:
    """The next step of every layer in two heaps by sign, smallest effect on top."""

    ladders: list[_Ladder]
    heaps: dict[bool, list[tuple[float, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.heaps = {True: [], False: []}
        for position in range(len(self.ladders)):
            self.push(position)

    def push(self, position: int) -> None:
        ladder = self.ladders[position]
        if not ladder.ended:
            heapq.heappush(self.heaps[ladder.effect >= 0], (abs(ladder.effect), position))

    def pop(self, positive: bool) -> int:
        return heapq.heappop(self.heaps[positive] or self.heaps[not positive])[1]


def _signed(curve: LayerCurve) -> Floats:
    if curve.first_order_effects is None:
        raise InputError(
            f"zs_svd needs the signed effects of components, missing for {curve.name}: they "
            "come from the statistic mean_gradient; calibrate and decompose with zs_svd"
        )
    return curve.first_order_effects
