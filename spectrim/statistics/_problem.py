"""A layer to decompose or quantize, with its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectrim.statistics._result import LayerStatistics


@dataclass(frozen=True)
class LayerProblem:
    """weight (out, in), bias (out,) or None, statistics of the layer (None when not needed)."""

    name: str
    weight: Tensor
    bias: Tensor | None
    statistics: LayerStatistics | None

    def statistic(self, name: str) -> Any:
        assert self.statistics is not None, "a method that reads statistics declares REQUIRES"
        return self.statistics[name]
