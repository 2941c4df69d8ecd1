"""Sizes of one model that lie within one another, from the smallest to the largest.

    min sum_l loss_l(r_l) + price * sum_l cost_l(r_l),   price falling

Each layer's choices are reduced to the lower convex hull of its curve; the steps of all hulls
are sorted by loss per weight. A size is a beginning of that order; what it leaves of the budget
is spent in the same order on steps that still fit, and then on single ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spectrim.allocation._knapsack import KnapsackGroup, convex_hull
from spectrim.allocation._latency import LatencyTable
from spectrim.allocation._request import AllocationRequest, RankChoices, Storage, component_cost
from spectrim.errors import InputError
from spectrim.layers import FactoredLinear, layer_class

MOST_STEPS = 20_000
"""Above it, steps finer than that part of the model are merged with the next of their layer."""
_TIMED_SIZES = 101
"""Sizes that are compared with a budget of time."""
_ROUNDING = 1e-12
DENSE = 0
"""The rank of a layer that is left dense."""


@dataclass(frozen=True)
class NestedLayer:
    """One layer of a nested family.

    Attributes:
        shape: (out, in).
        first: its rank at the smallest size, `DENSE` if it is dense at every size.
        components: the terms left_i right_i that are stored, at least its largest rank.
        has_dense: whether the dense weight is stored beside them.
    """

    shape: tuple[int, int]
    first: int
    components: int
    has_dense: bool

    @property
    def stored(self) -> int:
        """Return the weights that are stored for all sizes together."""
        out_features, in_features = self.shape
        dense = out_features * in_features if self.has_dense else 0
        return self.components * (out_features + in_features) + dense


@dataclass(frozen=True)
class NestedSizes:
    """Every size between two budgets.

    Attributes:
        kind: the layer type that a rank is cut as.
        smallest, largest: fractions of the dense layers' weights.
        multiple: ranks are multiples of it.
        layers: by name, in the order that `steps` counts them.
        steps: (layer, its new rank), in the order of loss per weight.
        losses: predicted for the whole model before each step and after the last, nats.
        storage: the size of a matrix (rows, columns) in weights, for quantized components; None
            if every number takes the same.
    """

    kind: str
    smallest: float
    largest: float
    multiple: int
    layers: Mapping[str, NestedLayer]
    steps: tuple[tuple[int, int], ...]
    losses: tuple[float, ...]
    storage: Storage | None = field(default=None, compare=False)

    @cached_property
    def dense_weights(self) -> int:
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers.values())

    @property
    def stored(self) -> int:
        """Return the weights that one file for all sizes holds."""
        return sum(map(self.held, self.layers))

    def held(self, name: str) -> int:
        """Return the weights that the file holds of one layer."""
        layer = self.layers[name]
        if self.storage is None:
            return layer.stored
        dense = self.storage(*layer.shape) if layer.has_dense else 0
        return dense + component_cost(self.storage, layer.shape, layer.components)

    def ranks(self, budget: float) -> dict[str, int | None]:
        """Return the rank of each layer at `budget`, None for dense.

        Raises InputError for a budget outside the range.
        """
        left = self._weights(budget) - self._first_cost
        found = [layer.first for layer in self._list]
        stopped: dict[int, None] = {}
        for index, rank in self.steps:
            layer = self._list[index]
            extra = self._cost(layer, rank) - self._cost(layer, found[index])
            if extra > left:
                stopped[index] = None
            elif index not in stopped:
                found[index], left = rank, left - extra
        for index in stopped:
            layer, before = self._list[index], found[index]
            found[index] = self._partial(layer, before, left)
            left -= self._cost(layer, found[index]) - self._cost(layer, before)
        return {name: rank or None for name, rank in zip(self.layers, found, strict=True)}

    def cost(self, ranks: Mapping[str, int | None]) -> int:
        """Return the weights of the layers at `ranks`."""
        return sum(self.weights(name, ranks[name]) for name in self.layers)

    def weights(self, name: str, rank: int | None) -> int:
        """Return the weights of one layer at a rank, None for dense."""
        return self._cost(self.layers[name], rank or DENSE)

    def loss(self, budget: float) -> float:
        """Return the predicted loss at `budget`, nats per token, of its whole steps."""
        done = int(np.searchsorted(self._costs, self._weights(budget), side="right")) - 1
        return self.losses[max(done, 0)]

    def budget_for_loss(self, target: float) -> float:
        """Return the smallest budget whose predicted loss is at most `target`.

        Raises InputError for a target that no size meets.
        """
        points = zip(self._costs.tolist(), self.losses, strict=True)
        met = [cost for cost, loss in points if loss <= target]
        if not met:
            raise InputError(
                f"target loss {target:g} is below {self.losses[-1]:.4f} nats per token, the "
                f"prediction at the largest size ({self.largest:g}); raise it"
            )
        return self._clipped(met[0])

    def budget_for_weights(self, weights: float) -> float:
        """Return the budget at which the layers have at most `weights` numbers.

        Raises InputError where the smallest size has more.
        """
        if weights < int(self.smallest * self.dense_weights):
            raise InputError(
                f"the layers would have to fit in {max(weights, 0):,.0f} numbers, the smallest "
                f"size ({self.smallest:g}) has {int(self.smallest * self.dense_weights):,}; "
                "ask for more bytes"
            )
        return self._clipped(weights)

    def budget_for_time(self, times: LatencyTable, fraction: float) -> float:
        """Return the largest budget whose layers take at most `fraction` of the dense time.

        Raises InputError for times that are missing, and where the smallest size takes more.
        """
        if self.storage is not None:
            raise InputError("the time of quantized layers is not measured; choose a --budget")
        shapes = [layer.shape for layer in self.layers.values()]

        def seconds(ranks: Iterable[int | None]) -> float:
            pairs = zip(shapes, ranks, strict=True)
            return sum(times.seconds(shape, self.kind, rank) for shape, rank in pairs)

        limit, best = fraction * seconds([None] * len(shapes)), None
        for budget in np.linspace(self.smallest, self.largest, _TIMED_SIZES).tolist():
            if seconds(self.ranks(self._bounded(budget)).values()) <= limit:
                best = self._bounded(budget)
        if best is None:
            raise InputError(
                f"even the smallest size ({self.smallest:g}) takes more than {fraction:.0%} of "
                "the dense layers' time here"
            )
        return best

    def curve(self) -> list[tuple[float, float]]:
        """Return (fraction of the weights, predicted loss) of every whole step."""
        return [
            (cost / self.dense_weights, loss)
            for cost, loss in zip(self._costs.tolist(), self.losses, strict=True)
        ]

    def _checked(self, budget: float) -> float:
        if not self.smallest - 1e-9 <= budget <= self.largest + 1e-9:
            raise InputError(
                f"budget {budget:g} is outside this checkpoint's sizes, "
                f"{self.smallest:g} to {self.largest:g}"
            )
        return budget

    def _weights(self, budget: float) -> int:
        """Return a budget as weights, where the budget may be a rounded quotient of some."""
        return int(self._checked(budget) * self.dense_weights * (1 + _ROUNDING) + 1e-9)

    def _bounded(self, budget: float) -> float:
        return min(max(budget, self.smallest), self.largest)

    def _clipped(self, weights: float) -> float:
        return self._bounded(weights / self.dense_weights)

    @cached_property
    def _first_cost(self) -> int:
        return sum(self._cost(layer, layer.first) for layer in self._list)

    @cached_property
    def _costs(self) -> NDArray[np.int64]:
        """Return the weights before each step and after the last."""
        ranks, costs = [layer.first for layer in self._list], [self._first_cost]
        for index, rank in self.steps:
            layer = self._list[index]
            costs.append(costs[-1] + self._cost(layer, rank) - self._cost(layer, ranks[index]))
            ranks[index] = rank
        return np.array(costs, dtype=np.int64)

    @cached_property
    def _kind(self) -> type[FactoredLinear]:
        return layer_class(self.kind)

    @cached_property
    def _list(self) -> list[NestedLayer]:
        return list(self.layers.values())

    def _cost(self, layer: NestedLayer, rank: int) -> int:
        rows, columns = layer.shape
        if rank == DENSE:
            return rows * columns if self.storage is None else self.storage(rows, columns)
        if self.storage is not None:
            return component_cost(self.storage, layer.shape, rank)
        return self._kind.cost(rows, columns, rank)

    def _partial(self, layer: NestedLayer, rank: int, left: int) -> int:
        """Return the largest stored rank of a layer that costs at most `left` more."""
        dense, spent = self._cost(layer, DENSE), self._cost(layer, rank)
        while (more := rank + self.multiple) <= layer.components:
            cost = self._cost(layer, more)
            if cost - spent > left or cost >= dense:
                break
            rank = more
        return rank


def nest_sizes(
    request: AllocationRequest, smallest: float, total_loss: Callable[[float], float]
) -> NestedSizes:
    """Return the nested sizes from `smallest` to the request's budget.

    Args:
        total_loss: maps the sum of the layers' losses to the loss of the whole model.

    Raises InputError for a smallest size that no ranks meet.
    """
    growth = _Growth.of(request, smallest)
    growth.run(int(smallest * request.dense_cost + 1e-9), request.weights)
    choices = growth.choices
    return NestedSizes(
        request.layer,
        smallest,
        request.budget,
        request.multiple,
        _stored_layers(request, growth),
        tuple((index, int(choices[index].ranks[place])) for index, place in growth.steps),
        tuple(float(total_loss(loss)) for loss in growth.losses),
        request.storage,
    )


@dataclass
class _Growth:
    """The places on all layers' curves while the model grows.

    Attributes:
        places: the choice of each layer now, `first` at the smallest size.
        steps: (layer, choice) after the smallest size.
        losses: the sum of the layers' losses before each step and, in the end, after the last.
    """

    choices: list[RankChoices]
    hulls: list[NDArray[np.int64]]
    places: list[int]
    cost: int
    first: list[int] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, request: AllocationRequest, smallest: float) -> _Growth:
        choices = [request.choices(curve) for curve in request.curves]
        hulls = _thinned_hulls(request, choices)
        places = [int(hull[0]) for hull in hulls]
        cost = sum(int(c.costs[p]) for c, p in zip(choices, places, strict=True))
        if cost > int(smallest * request.dense_cost + 1e-9):
            raise InputError(
                f"budget {smallest:g} is below the smallest possible model "
                f"({cost / request.dense_cost:.4f}); raise it"
            )
        return cls(choices, hulls, places, cost)

    def run(self, least: int, most: int) -> None:
        """Take the steps while they fit `most` weights; those within `least` are the start.

        After the first that does not fit, those of other layers that do are taken.
        """
        stopped: dict[int, None] = {}
        for index, place in _ordered(self.choices, self.hulls):
            after = self.cost + self._extra(index, place)
            if after > most:
                stopped[index] = None
            elif index not in stopped:
                self._take(index, place, recorded=bool(self.steps) or after > least)
        for index in stopped:
            last = _filled(self.choices[index], self.places[index], most - self.cost)
            if last is not None:
                self._take(index, last, recorded=True)
        self.first = self.first or list(self.places)
        self.losses.append(self._loss())

    def _take(self, index: int, place: int, recorded: bool) -> None:
        if recorded:
            self.first = self.first or list(self.places)
            self.losses.append(self._loss())
            self.steps.append((index, place))
        self.cost += self._extra(index, place)
        self.places[index] = place

    def _extra(self, index: int, place: int) -> int:
        costs = self.choices[index].costs
        return int(costs[place] - costs[self.places[index]])

    def _loss(self) -> float:
        return float(sum(c.losses[p] for c, p in zip(self.choices, self.places, strict=True)))


def _thinned_hulls(
    request: AllocationRequest, choices: list[RankChoices]
) -> list[NDArray[np.int64]]:
    """Return each layer's convex hull, if there are many, without corners close together."""
    hulls = [convex_hull(KnapsackGroup(c.costs, c.losses)) for c in choices]
    if sum(map(len, hulls)) <= MOST_STEPS:
        return hulls
    finest = request.dense_cost / MOST_STEPS
    found = []
    for choice, hull in zip(choices, hulls, strict=True):
        kept = [int(hull[0])]
        for place in hull[1:].tolist():
            if place == hull[-1] or choice.costs[place] - choice.costs[kept[-1]] >= finest:
                kept.append(place)
        found.append(np.array(kept, dtype=np.int64))
    return found


def _ordered(
    choices: list[RankChoices], hulls: list[NDArray[np.int64]]
) -> Iterator[tuple[int, int]]:
    """Yield (layer, choice) by falling loss per weight; equal ones in the layers' order."""
    slopes, steps = [], []
    for index, (choice, hull) in enumerate(zip(choices, hulls, strict=True)):
        slopes += (np.diff(choice.losses[hull]) / np.diff(choice.costs[hull])).tolist()
        steps += [(index, int(place)) for place in hull[1:]]
    for number in np.argsort(np.array(slopes), kind="stable").tolist():
        yield steps[number]


def _filled(choice: RankChoices, place: int, left: int) -> int | None:
    """Return the last choice short of dense that costs at most `left` more, None if none."""
    fits = np.flatnonzero((choice.costs - choice.costs[place] <= left) & (choice.ranks > 0))
    last = int(fits[-1])
    return last if last > place else None


def _stored_layers(request: AllocationRequest, growth: _Growth) -> dict[str, NestedLayer]:
    """Return what is stored of each layer: what costs least and holds all of its sizes."""
    used = [{place} for place in growth.first]
    for index, place in growth.steps:
        used[index].add(place)
    layers = {}
    for curve, choice, places, begin in zip(
        request.curves, growth.choices, used, growth.first, strict=True
    ):
        ranks = [int(choice.ranks[place]) for place in places]
        layer = NestedLayer(curve.shape, int(choice.ranks[begin]), max(ranks), DENSE in ranks)
        most = len(curve.loss) - 1
        layers[curve.name] = layer if request.storage is not None else _cheaper(layer, most)
    return layers


def _cheaper(layer: NestedLayer, held: int) -> NestedLayer:
    """Return the layer with all of its components in place of the dense weight, if cheaper."""
    whole = min(layer.shape)
    if not (layer.has_dense and layer.components) or held < whole:
        return layer
    full = NestedLayer(layer.shape, layer.first, whole, False)
    return full if full.stored < layer.stored else layer
