"""Gradient with a curvature in closed form: what estimators that need no probes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.pruning.coordinate_statistics import Moments, moments
from spectrim.pruning.importance._importance import Importance, coordinates_of, taylor
from spectrim.pruning.objective import Objective
from spectrim.pruning.sampled_labels import check_temperature, sample_labels
from spectrim.pruning.spectral import SpectralLinear


@dataclass(frozen=True)
class ClosedFormOptions:
    """temperature None: curvature from the data's labels, by the pass of the gradient.

    Otherwise from labels that the model draws itself (`spectrim.pruning.sampled_labels`), by
    one more forward and gradient pass for each of `draws`.
    """

    temperature: float | None = None
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_temperature(self.temperature, self.draws)


def closed_form(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: ClosedFormOptions,
    curvature: Callable[[Moments], Tensor],
) -> Importance:
    """-c g + 1/2 c^2 h with h the `curvature` of a layer's moments."""
    found = moments(model, layers, objective)
    curved = [found]
    if options.temperature is not None:
        curved = _drawn(model, layers, objective, options, options.temperature)
    scores, slopes = {}, {}
    for name, layer in layers.items():
        mean = torch.stack([curvature(one[name]) for one in curved]).mean(0)
        coordinates = coordinates_of(layer)
        scores[name] = taylor(coordinates, found[name].gradient, mean)
        slopes[name] = -coordinates * found[name].gradient
    passes = 1 if options.temperature is None else 1 + options.draws
    return Importance(scores, passes, gradient_terms=slopes)


def _drawn(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: ClosedFormOptions,
    temperature: float,
) -> list[dict[str, Moments]]:
    """One set of moments per draw of labels."""
    seeds = (options.seed * 1_000_003 + number for number in range(options.draws))
    return [
        moments(model, layers, sample_labels(model, objective, temperature, seed, "squares"))
        for seed in seeds
    ]
