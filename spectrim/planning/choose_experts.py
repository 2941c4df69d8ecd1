"""Whole experts under the same budget as ranks: how many leave each block.

A block whose first j experts (of an order) are gone costs P(j); with a multiplier m, each layer
that is left takes its best rank, so the block takes

    argmin_j  P(j) + sum over layers of experts left of min_r [loss(r) + m cost(r)]

The multiplier is bisected until the budget is met. Removals of both sides of the last step, and
those between, are then tried with the ranks that are best for each, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spectrim.allocation import AllocationRequest, KnapsackGroup, LayerCurve, solve_knapsack
from spectrim.errors import InputError
from spectrim.planning.decomposition import Decomposition
from spectrim.planning.experts import ExpertCurve, expert_of
from spectrim.planning.remaining import without_experts
from spectrim.planning.settings import ExpertSettings

_BISECTIONS = 60
_MULTIPLIERS = (1e-24, 1e3)
"""Nats per weight."""
_MOST_TRIED = 24
"""Numbers of experts by block that are tried with the best ranks of each."""
CurvesOf = Callable[[Decomposition], tuple[LayerCurve, ...]]


def choose_experts(
    decomposition: Decomposition,
    request: AllocationRequest,
    settings: ExpertSettings,
    curves_of: CurvesOf,
) -> dict[str, tuple[int, ...]]:
    """Return the experts to remove by block.

    Args:
        request: all layers, at the budget of the model.
        curves_of: gives the layers' curves of what is left of the decomposition.

    Raises InputError for a budget that experts alone cannot meet.
    """
    problem = _Problem(decomposition, request, settings.cut_ranks, curves_of)
    if settings.uniform:
        counts = problem.best(problem.uniform())
    elif settings.cut_ranks:
        counts = problem.best(problem.nearest())
    else:
        counts = problem.alone()
    chosen = zip(problem.curves.items(), counts, strict=True)
    return {name: curve.order[:count] for (name, curve), count in chosen if count}


Counts = tuple[int, ...]
"""Removed experts of each block."""


@dataclass(frozen=True)
class _Hull:
    """The choices of one layer, by ascending cost."""

    costs: NDArray[np.int64]
    losses: NDArray[np.float64]

    def at(self, multiplier: float) -> tuple[int, float]:
        """Return cost and loss of the best choice."""
        best = int((self.losses + multiplier * self.costs).argmin())
        return int(self.costs[best]), float(self.losses[best])


@dataclass(frozen=True)
class _Problem:
    """The blocks, by what is left of their layers and groups at every number of experts.

    A group that spans several blocks is counted as outside of them until the best ranks are
    computed.
    """

    decomposition: Decomposition
    request: AllocationRequest
    cut_ranks: bool
    curves_of: CurvesOf

    @property
    def curves(self) -> dict[str, ExpertCurve]:
        return self.decomposition.experts

    @cached_property
    def hulls(self) -> dict[str, _Hull]:
        """Return the choices of every layer, and of what is left of every group."""
        found = {curve.name: self._hull(curve) for curve in self.request.curves}
        for states in self._states.values():
            for curve in (curve for state in states for curve in state):
                if curve.name not in found:
                    found[curve.name] = self._hull(curve)
        return found

    def _hull(self, curve: LayerCurve) -> _Hull:
        choices = self.request.choices(curve)
        first = 0 if self.cut_ranks else -1  # the last choice is the dense layer
        return _Hull(choices.costs[first:], choices.losses[first:])

    def uniform(self) -> Iterator[Counts]:
        """Yield equal numbers for all blocks, with experts alone the fewest that fit."""
        most = min(len(curve.order) for curve in self.curves.values())
        for count in range(most + 1):
            counts = (count,) * len(self.curves)
            if self.cut_ranks or self._cheapest(counts) <= self.request.weights:
                yield counts
                if not self.cut_ranks:
                    return

    def alone(self) -> Counts:
        """Return the best numbers where every layer that is left stays dense."""
        groups = []
        for name, curve in self.curves.items():
            dense = {layer: float(hull.costs[-1]) for layer, hull in self.hulls.items()}
            added = {layer: float(hull.losses[-1]) for layer, hull in self.hulls.items()}
            costs = self._by_count(name, dense)[::-1].round().astype(np.int64)
            losses = np.array(curve.losses) + self._by_count(name, added)
            groups.append(KnapsackGroup(costs, losses[::-1].copy()))
        outside = sum(int(self.hulls[name].costs[-1]) for name in self._outside)
        budget = self.request.weights - outside
        if sum(int(group.costs[0]) for group in groups) > budget:
            raise self._too_small()
        picked = solve_knapsack(groups, budget)
        return tuple(len(g.costs) - 1 - i for g, i in zip(groups, picked, strict=True))

    def nearest(self) -> Iterator[Counts]:
        """Yield no experts, the numbers on both sides of the multiplier that meets the budget,
        and those between.
        """
        low, high = _MULTIPLIERS
        for _ in range(_BISECTIONS):
            middle = float(np.sqrt(low * high))
            fits = self._at(middle)[0] <= self.request.weights
            low, high = (low, middle) if fits else (middle, high)
        few, many = self._at(low)[1], self._at(high)[1]
        yield (0,) * len(self.curves)
        yield few
        yield from _between(few, many)

    def best(self, tried: Iterator[Counts]) -> Counts:
        """Return the numbers with the least loss at the budget. Raises InputError for none."""
        found = [(loss, c) for c in tried if (loss := self._loss(c)) is not None]
        if not found:
            raise self._too_small()
        return min(found, key=lambda pair: (pair[0], -sum(pair[1])))[1]

    def _loss(self, counts: Counts) -> float | None:
        """Return the loss with the best ranks at the budget, None where none fit."""
        groups = [KnapsackGroup(h.costs, h.losses) for h in self._left(counts)]
        if sum(int(group.costs[0]) for group in groups) > self.request.weights:
            return None
        pairs = zip(self.curves.values(), counts, strict=True)
        priced = sum(curve.losses[count] for curve, count in pairs)
        picked = solve_knapsack(groups, self.request.weights)
        return priced + sum(float(g.losses[i]) for g, i in zip(groups, picked, strict=True))

    def _cheapest(self, counts: Counts) -> int:
        return sum(int(hull.costs[0]) for hull in self._left(counts))

    def _left(self, counts: Counts) -> list[_Hull]:
        pairs = zip(self.curves.items(), counts, strict=True)
        removed = {name: curve.order[:count] for (name, curve), count in pairs}
        left = self.curves_of(without_experts(self.decomposition, removed))
        return [self.hulls.get(curve.name) or self._hull(curve) for curve in left]

    def _at(self, multiplier: float) -> tuple[int, Counts]:
        """Return the cost of all layers, and how many experts leave each block."""
        best = {name: hull.at(multiplier) for name, hull in self.hulls.items()}
        spent = sum(best[name][0] for name in self._outside)
        counts = []
        for name, curve in self.curves.items():
            cost = self._by_count(name, {layer: pair[0] for layer, pair in best.items()})
            loss = self._by_count(name, {layer: pair[1] for layer, pair in best.items()})
            total = np.array(curve.losses) + loss + multiplier * cost
            counts.append(len(total) - 1 - int(total[::-1].argmin()))  # of equal ones the most
            spent += int(cost[counts[-1]])
        return spent, tuple(counts)

    def _by_count(self, name: str, values: Mapping[str, float]) -> NDArray[np.float64]:
        """Return the sum over the layers of a block without 0, 1, ... of its experts."""
        states = self._states[name]
        return np.array([sum(values[curve.name] for curve in state) for state in states])

    @cached_property
    def _states(self) -> dict[str, list[tuple[LayerCurve, ...]]]:
        """Return what is left of each block without 0, 1, ... of its experts."""
        found = {}
        for name, curve in self.curves.items():
            own = self.decomposition.select(self._inside[name])
            removed = (curve.order[:count] for count in range(len(curve.order) + 1))
            found[name] = [self.curves_of(without_experts(own, {name: r})) for r in removed]
        return found

    @cached_property
    def _inside(self) -> dict[str, list[str]]:
        """Return the layers of each block, and the groups all of whose members are its own."""
        found: dict[str, list[str]] = {name: [] for name in self.curves}
        for layer in self.decomposition.shapes:
            members = self.decomposition.groups.get(layer, (layer,))
            places = {place[0] if (place := expert_of(m)) else None for m in members}
            block = places.pop()
            if not places and block in found:
                found[block].append(layer)
        return found

    @cached_property
    def _outside(self) -> list[str]:
        inside = {layer for layers in self._inside.values() for layer in layers}
        return [name for name in self.decomposition.shapes if name not in inside]

    def _too_small(self) -> InputError:
        hint = "" if self.cut_ranks else ", or let ranks be cut too (experts.cut_ranks)"
        return InputError(
            f"budget {self.request.budget:g} is below what removing experts can reach: each "
            f"token keeps as many experts as it has; raise it{hint}"
        )


def _between(few: Counts, many: Counts) -> Iterator[Counts]:
    """Yield numbers from `few` to `many`, one block and one expert after the other."""
    counts, tried = list(few), 0
    for block, most in enumerate(many):
        for count in range(counts[block] + 1, most + 1):
            counts[block] = count
            tried += 1
            if tried <= _MOST_TRIED:
                yield tuple(counts)
        for count in range(counts[block] - 1, most - 1, -1):
            counts[block] = count
            tried += 1
            if tried <= _MOST_TRIED:
                yield tuple(counts)
    if tried > _MOST_TRIED:
        yield many
