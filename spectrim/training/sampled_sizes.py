"""The sizes of an elastic model that one step trains: both ends and two drawn between them.

    min  E_b [ loss(first r_l(b) components of each layer l) ],   b from smallest to largest

The ends bound every size between them (the sandwich rule), so each step has both; the others
are drawn from either half of the range by the step's number, so that runs can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectrim.layers import ElasticLinear

REFERENCE = "Yu and Huang, 2019, arXiv:1903.05134"


@dataclass(frozen=True)
class SampledSizes:
    """The sizes of an elastic model.

    Attributes:
        smallest, largest: fractions of the layers' weights.
        ranks: of each layer by name at a size, None for dense.
        key: all that `ranks` depends on, for caches.
    """

    smallest: float
    largest: float
    ranks: Callable[[float], Mapping[str, int | None]]
    key: Any = None

    def draw(self, step: int, seed: int) -> tuple[float, float, float, float]:
        """Return the sizes of a step, the largest first."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        low, high = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        half = (self.largest - self.smallest) / 2
        between = self.smallest + half * (1 + high), self.smallest + half * low
        return self.largest, *between, self.smallest

    def evenly(self, model: nn.Module) -> list[AbstractContextManager[None]]:
        """Return cuts of the model to as many sizes as a step has, evenly spaced."""
        step = (self.largest - self.smallest) / 3
        between = self.largest - step, self.smallest + step
        return [self.cut(model, b) for b in (self.largest, *between, self.smallest)]

    @contextmanager
    def cut(self, model: nn.Module, budget: float) -> Iterator[None]:
        """Let the model compute at one size; at the largest afterward."""
        try:
            self._set(model, budget)
            yield
        finally:
            self._set(model, self.largest)

    def _set(self, model: nn.Module, budget: float) -> None:
        for name, rank in self.ranks(budget).items():
            if isinstance(layer := model.get_submodule(name), ElasticLinear):
                layer.rank = rank
