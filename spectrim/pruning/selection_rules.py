"""Selection of bases to drop, given their importance and the weights to keep.

    global   drop the smallest I_i / cost_i of all layers until the rest fits
    mass     every layer keeps its smallest prefix, in falling order, that holds a common
             fraction of its sum; the fraction is the largest that fits

The second is Basel's rule (Wang et al., 2024, arXiv:2405.15877). Bases are counted as factors
also where these cost more than the dense weight: while a layer has many it is early to say
whether it will end up dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.pruning.options import Rule

_BISECTIONS = 60


@dataclass(frozen=True)
class LayerCost:
    """weights(r): what the layer stores at rank r; `dense`: what it stores uncompressed.

    extra: ranks that are there besides the scored bases (new ones).
    """

    weights: Callable[[int], int]
    dense: int
    extra: int = 0

    def of(self, bases: int) -> int:
        return self.weights(bases + self.extra)

    def is_dense(self, bases: int) -> bool:
        return self.weights(bases + self.extra) >= self.dense

    def per_basis(self, bases: int) -> float:
        """Average weights of a basis when `bases` of them are stored."""
        return self.weights(bases) / bases


def select(
    scores: dict[str, Tensor], costs: dict[str, LayerCost], weights: int, rule: Rule
) -> dict[str, Tensor]:
    """Ascending indices of the bases to keep in each layer, at most `weights` stored in all.

    Every layer keeps at least one. Raises InputError when that does not fit.
    """
    least = sum(cost.of(1) for cost in costs.values())
    if least > weights:
        raise InputError(
            f"one basis per layer stores {least} weights, the budget allows {weights}; raise "
            "the budget, or ask for fewer new bases"
        )
    kept = (
        _global(scores, costs, weights) if rule == "global" else _mass(scores, costs, weights)
    )
    return {name: _best(scores[name], kept[name]) for name in scores}


def stored_weights(kept: dict[str, int], costs: dict[str, LayerCost]) -> int:
    """Weights of all layers together, each with its number of bases."""
    return sum(costs[name].of(count) for name, count in kept.items())


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _global(
    scores: dict[str, Tensor], costs: dict[str, LayerCost], weights: int
) -> dict[str, int]:
    """Return how many bases each layer keeps: the cheapest per weight leave first."""
    names = list(scores)
    prices = [scores[n] / costs[n].per_basis(len(scores[n])) for n in names]
    order = torch.cat(prices).argsort(stable=True).tolist()
    owner = [name for name, price in zip(names, prices, strict=True) for _ in price]
    kept = {name: len(scores[name]) for name in names}
    total = stored_weights(kept, costs)
    for position in order:
        if total <= weights:
            break
        name = owner[position]
        if kept[name] > 1:
            total -= costs[name].of(kept[name])
            kept[name] -= 1
            total += costs[name].of(kept[name])
    return kept


def _mass(
    scores: dict[str, Tensor], costs: dict[str, LayerCost], weights: int
) -> dict[str, int]:
    """Return how many bases each layer keeps: as many as hold one fraction of its sum."""
    shares = {name: _cumulative_share(values) for name, values in scores.items()}

    def at(fraction: float) -> dict[str, int]:
        return {
            name: min(len(share), int(torch.searchsorted(share, fraction)) + 1)
            for name, share in shares.items()
        }

    low, high = 0.0, 1.0
    if stored_weights(at(high), costs) <= weights:
        return at(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if stored_weights(at(middle), costs) <= weights else (low, middle)
        )
    return at(low)


def _cumulative_share(scores: Tensor) -> Tensor:
    falling = scores.clamp_min(0.0).double().sort(descending=True).values
    total = falling.sum()
    share = falling.cumsum(0) / total if total > 0 else falling
    return share.clamp_max(1.0)
