"""The singular value `|c_i| s_i` itself, no loss: Basel's score.

s_i is the singular value of the layer's weight that basis i has, so the order is that of what
the weight loses, not of what the task does. No pass over the data; made for `rule: mass`.
"""

from __future__ import annotations

from torch import nn

from spectrim.pruning.importance._importance import Importance
from spectrim.pruning.objective import Objective
from spectrim.pruning.spectral import SpectralLinear
from spectrim.registry import NoOptions

REFERENCE = "Wang et al., 2024, arXiv:2405.15877"


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: NoOptions,
) -> Importance:
    scores = {name: layer.singular_values().double() for name, layer in layers.items()}
    return Importance(scores, passes=0, units="singular values")
