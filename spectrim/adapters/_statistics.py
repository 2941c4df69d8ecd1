"""Statistics of the layers that an adapter is put on, for directions that the data order."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from spectrim.adapters.targets import adapter_targets
from spectrim.calibration import CalibrationSettings
from spectrim.calibration.in_memory import calibrate
from spectrim.data import TokenBlocks
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import ModelError
from spectrim.models.linear import get_shape, is_linear
from spectrim.models.targets import Target
from spectrim.statistics import Calibration, LayerStatistics


@dataclass(frozen=True)
class AdapterStatistics:
    """Sums over the tokens of a text, by the names of the adapted modules."""

    calibration: Calibration

    def layer(self, name: str) -> LayerStatistics:
        """Return the statistics of a layer. Raises ModelError for one without."""
        for known in (name, f"{name}.base_layer"):  # below another adapter
            if known in self.calibration.counts:
                return self.calibration.layer(known)
        raise ModelError(f"no statistics of {name}; they were taken of other modules")


def with_statistics(config: Any, model: nn.Module, blocks: TokenBlocks) -> Any:
    """Return `config` with what its decomposition requires, from one pass over `blocks`.

    A configuration that requires nothing is returned as it is. Raises ModelError for layers
    that are quantized: their statistics are taken before.
    """
    required = DECOMPOSITIONS.get(getattr(config.options(), "decomposition", "svd")).REQUIRES
    if not required:
        return config
    modules = {name: model.get_submodule(name) for name in adapter_targets(model)}
    if any(not is_linear(module) for module in modules.values()):
        raise ModelError(
            "directions from statistics need layers that are not quantized; quantize later, or "
            "use another adapter"
        )
    targets = [Target(name, get_shape(module)) for name, module in modules.items()]
    found = calibrate(model, targets, blocks, CalibrationSettings(tuple(required)))
    result = copy.copy(config)
    result.statistics = AdapterStatistics(found)
    return result
