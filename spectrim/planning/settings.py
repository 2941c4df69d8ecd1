"""The inputs of a plan besides the spectra: budget, allocation, layer type, bytes, time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class FactorQuantizer:
    """Storage of factors in fewer bits.

    Attributes:
        name: a quantizer of `spectrim ls`.
        options: of that quantizer.
        dtype: the dtype that is quantized, and in which dense weights are counted.
    """

    name: str
    options: Mapping[str, Any]
    dtype: str = "float32"


@dataclass(frozen=True)
class ExpertSettings:
    """How whole experts are removed under the same budget.

    Attributes:
        uniform: the same number from every block.
        cut_ranks: whether layers that are left lose ranks too; without, all stay dense.
    """

    uniform: bool = False
    cut_ranks: bool = True


@dataclass(frozen=True)
class PlanningSettings:
    """Choice and cost of ranks.

    Attributes:
        budget: fraction of the weights (of the bytes with a quantizer) to keep.
        allocation, allocation_options: the allocator.
        layer, layer_options: the layer type that stores the factors.
        rank_multiple: ranks are multiples of it; "auto" depends on the device.
        quantizer: None stores factors in full precision.
        latency_budget: fraction of the dense layers' time, in place of `budget`.
        experts: None removes no experts.
    """

    budget: float = 0.8
    allocation: str = "loss_optimal"
    allocation_options: Mapping[str, Any] = field(default_factory=dict)
    layer: str = "pivoted"
    layer_options: Mapping[str, Any] = field(default_factory=dict)
    rank_multiple: int | Literal["auto"] = 1
    quantizer: FactorQuantizer | None = None
    latency_budget: float | None = None
    experts: ExpertSettings | None = None

    def at_budget(self, budget: float) -> PlanningSettings:
        """Return the settings with another budget of weights or bytes, and none of time."""
        return replace(self, budget=budget, latency_budget=None)

    def for_probing(self, budget: float) -> PlanningSettings:
        """Return settings for plans to measure: loss-optimal plain factors at `budget`.

        They depend on nothing else but whether experts go, so the measurements serve every
        recipe.
        """
        return PlanningSettings(budget=budget, layer="lowrank", experts=self.experts)

    def for_layers(self) -> PlanningSettings:
        """Return the settings for a plan that removes no experts."""
        return replace(self, experts=None)
