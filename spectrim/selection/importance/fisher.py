"""I = -c g + 1/2 c^2 E[(a d)^2]: gradient and each token's own curvature, one gradient pass."""

from __future__ import annotations

from torch import nn

from spectrim.registry import NoOptions
from spectrim.selection.importance._importance import Importance, coordinates_of, taylor
from spectrim.selection.moments import moments
from spectrim.selection.objective import Objective
from spectrim.selection.spectral import SpectralLinear

REFERENCE = "the diagonal of the empirical Fisher, in BSI, arXiv:2605.01627"


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: NoOptions,
) -> Importance:
    found = moments(model, layers, objective)
    scores = {
        name: taylor(coordinates_of(layer), found[name].gradient, found[name].fisher)
        for name, layer in layers.items()
    }
    return Importance(scores, passes=1)
