"""`I = -c g`: the gradient alone.

c_i the coordinate of basis i (1 at the start), `g_i = dL/dc_i`: the change of the task's loss,
to first order, when the basis goes. One gradient pass. Near a minimum slopes are small and say
little of a removal, which is a large step: `kronecker` and `fisher` add the curvature from the
same pass.
"""

from __future__ import annotations

from torch import nn

from spectrim.pruning.coordinate_statistics import moments
from spectrim.pruning.importance._importance import Importance, coordinates_of
from spectrim.pruning.objective import Objective
from spectrim.pruning.spectral import SpectralLinear
from spectrim.registry import NoOptions

REFERENCE = "the first term of BSI, arXiv:2605.01627"


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: NoOptions,
) -> Importance:
    found = moments(model, layers, objective)
    scores = {n: -coordinates_of(layer) * found[n].gradient for n, layer in layers.items()}
    return Importance(scores, passes=1, gradient_terms=scores)
