"""`I = -c g + 1/2 c^2 (l^T C_g l)(r^T C_x r)`: OBD's curvature, one gradient pass.

With a temperature the curvature comes from labels that the model draws itself (see
`spectrim.pruning.sampled_labels`), by one more forward and gradient pass for each of `draws`:
for models that are sure of the task's answers.
"""

from __future__ import annotations

from operator import attrgetter

from torch import nn

from spectrim.pruning.importance._closed_form import ClosedFormOptions, closed_form
from spectrim.pruning.importance._importance import Importance
from spectrim.pruning.objective import Objective
from spectrim.pruning.spectral import SpectralLinear

REFERENCE = "the curvature of Li et al., 2026, arXiv:2604.00821, in BSI, arXiv:2605.01627"
Options = ClosedFormOptions


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: ClosedFormOptions,
) -> Importance:
    return closed_form(model, layers, objective, options, attrgetter("kronecker"))
