"""I = -c g + 1/2 c^2 (l^T C_g l)(r^T C_x r): OBD's curvature, one gradient pass."""

from __future__ import annotations

from torch import nn

from spectrim.registry import NoOptions
from spectrim.selection.importance._importance import Importance, coordinates_of, taylor
from spectrim.selection.moments import moments
from spectrim.selection.objective import Objective
from spectrim.selection.spectral import SpectralLinear

REFERENCE = "the curvature of Li et al., 2026, arXiv:2604.00821, in BSI, arXiv:2605.01627"


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: NoOptions,
) -> Importance:
    found = moments(model, layers, objective)
    scores = {
        name: taylor(coordinates_of(layer), found[name].gradient, found[name].kronecker)
        for name, layer in layers.items()
    }
    return Importance(scores, passes=1)
