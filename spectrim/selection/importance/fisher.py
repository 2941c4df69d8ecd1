"""I = -c g + 1/2 c^2 E[(a d)^2]: gradient and each token's own curvature, one gradient pass.

With a temperature the curvature comes from labels that the model draws itself (see
`spectrim.selection.softened`), by one more forward and gradient pass for each of `draws`: for
models that are sure of the task's answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from spectrim.selection.importance._drawn import drawn_moments
from spectrim.selection.importance._importance import Importance, coordinates_of, taylor
from spectrim.selection.moments import moments
from spectrim.selection.objective import Objective
from spectrim.selection.softened import check_temperature
from spectrim.selection.spectral import SpectralLinear

REFERENCE = "the diagonal of the empirical Fisher, in BSI, arXiv:2605.01627"


@dataclass(frozen=True)
class Options:
    """temperature None: curvature from the data's labels, by the pass of the gradient."""

    temperature: float | None = None
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_temperature(self.temperature, self.draws)


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: Options,
) -> Importance:
    found = moments(model, layers, objective)
    curvatures = {name: entry.fisher for name, entry in found.items()}
    if options.temperature is not None:
        drawn = drawn_moments(model, layers, objective, options)
        curvatures = {
            name: torch.stack([one[name].fisher for one in drawn]).mean(0) for name in layers
        }
    scores = {
        name: taylor(coordinates_of(layer), found[name].gradient, curvatures[name])
        for name, layer in layers.items()
    }
    return Importance(scores, 1 if options.temperature is None else 1 + options.draws)
