"""The input of an allocator: one curve per layer, a budget, and the cost of a rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrim.errors import InputError
from spectrim.layers import layer_class

Storage = Callable[[int, int], int]
"""(elements, columns of a row) -> what they take, in the unit of the budget."""
RanksAndCosts = tuple[NDArray[np.int64], NDArray[np.int64]]
BY_STORAGE = ("loss_optimal", "uniform")
"""Allocators that ask only what a choice costs."""


@dataclass(frozen=True)
class LayerCurve:
    """The predicted loss increase loss[r] at rank r = 0 .. k, and the k values of a spectrum.

    first_order_effects: of dropping each component (k,), None if not gathered.
    layer: the layer type that stores it, None for the request's. dense_loss: its loss when left
    dense, zero unless it is rounded.
    """

    name: str
    shape: tuple[int, int]
    loss: NDArray[np.float64]
    spectrum: NDArray[np.float64]
    first_order_effects: NDArray[np.float64] | None = None
    layer: str | None = None
    dense_loss: float = 0.0

    @property
    def dense_cost(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class RankChoices:
    """The choices for one layer, by ascending cost. Rank 0 stands for "left dense"."""

    ranks: NDArray[np.int64]
    costs: NDArray[np.int64]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class AllocationRequest:
    """The layers to allocate ranks to, under a budget.

    budget: the fraction of the layers' weights to keep, in (0, 1].
    multiple: ranks are multiples of it, except a layer's only feasible rank.
    storage: the size of a matrix (rows, columns) in weights of the dense layer; None if every
    number takes the same. A layer left dense is stored in it too.
    """

    curves: tuple[LayerCurve, ...]
    budget: float
    layer: str
    multiple: int = 1
    storage: Storage | None = None

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise InputError(
                f"budget {self.budget} is out of range: it is the fraction of the weights to "
                "keep, above 0 and at most 1 (0.8 keeps 80%)"
            )
        if self.multiple < 1:
            raise InputError(f"rank multiple {self.multiple} must be at least 1")
        if self.smallest_cost > self.weights:
            raise InputError(
                f"budget {self.budget} is below the smallest possible model "
                f"({self.smallest_cost / self.dense_cost:.4f}: one rank unit per layer); "
                "raise the budget or lower the rank multiple"
            )

    @property
    def dense_cost(self) -> int:
        return sum(curve.dense_cost for curve in self.curves)

    @property
    def weights(self) -> int:
        """Return the budget in stored weights."""
        return int(self.budget * self.dense_cost + 1e-9)

    @property
    def smallest_cost(self) -> int:
        return sum(int(self.choices(curve).costs[0]) for curve in self.curves)

    def cost(self, curve: LayerCurve, rank: int | None) -> int:
        kind = layer_class(curve.layer or self.layer)
        if self.storage is not None:
            matrices = (curve.shape,) if rank is None else kind.matrices(*curve.shape, rank)
            return sum(self.storage(*shape) for shape in matrices)
        return curve.dense_cost if rank is None else kind.cost(*curve.shape, rank)

    def facts(self, ranks: Mapping[str, int | None]) -> dict[str, Any]:
        """Return the entries of a plan that describe the request."""
        return {}

    def choices(self, curve: LayerCurve) -> RankChoices:
        """Return every allowed rank that is cheaper than the dense layer, and the dense
        layer.
        """
        ranks, costs = self._cheaper(curve)
        losses = np.append(curve.loss[ranks[:-1]], curve.dense_loss)
        return RankChoices(ranks, costs, losses)

    def _cheaper(self, curve: LayerCurve) -> RanksAndCosts:
        """Return ranks with their costs, computed once for all layers of a shape and kind."""
        key = (curve.shape, curve.layer, len(curve.loss))
        if key not in self._ladders:
            ranks = np.arange(self.multiple, len(curve.loss), self.multiple, dtype=np.int64)
            costs = np.array([self.cost(curve, int(r)) for r in ranks], dtype=np.int64)
            dense = self.cost(curve, None)
            cheaper = costs < dense
            ladder = np.append(ranks[cheaper], 0), np.append(costs[cheaper], dense)
            self._ladders[key] = ladder
        return self._ladders[key]

    @cached_property
    def _ladders(self) -> dict[Any, RanksAndCosts]:
        return {}


def component_cost(storage: Storage, shape: tuple[int, int], rank: int) -> int:
    """Return what `rank` components take, each with scales of its own; 0 takes nothing."""
    return sum(storage(rank, side) for side in shape) if rank else 0


@dataclass(frozen=True)
class ComponentRequest(AllocationRequest):
    """A request whose quantized factors are stored by component."""

    def cost(self, curve: LayerCurve, rank: int | None) -> int:
        if self.storage is None or rank is None:
            return super().cost(curve, rank)
        return component_cost(self.storage, curve.shape, rank)
