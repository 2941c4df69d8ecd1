"""I = -c g: the gradient alone."""

from __future__ import annotations

from torch import nn

from spectrim.registry import NoOptions
from spectrim.selection.importance._importance import Importance, coordinates_of
from spectrim.selection.moments import moments
from spectrim.selection.objective import Objective
from spectrim.selection.spectral import SpectralLinear

REFERENCE = "the first term of BSI, arXiv:2605.01627"


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: NoOptions,
) -> Importance:
    found = moments(model, layers, objective)
    scores = {n: -coordinates_of(layer) * found[n].gradient for n, layer in layers.items()}
    return Importance(scores, passes=1, slopes=scores)
