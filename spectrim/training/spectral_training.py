"""Sparse spectral training: other singular vectors every `interval` steps.

A *round* is as many intervals as let every vector have its turn; after it each weight is
decomposed anew. The optimizer's state is that of the chosen vectors and begins anew with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from spectrim.errors import InputError
from spectrim.training.balanced_factors import Parameters
from spectrim.training.loop import Stage
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import Schedule
from spectrim.training.spectral_linear import SpectralLinear


@dataclass(frozen=True)
class SpectralOptions:
    """vectors: trained at a time in each layer; interval: steps between choices."""

    vectors: int = 16
    interval: int = 50

    def __post_init__(self) -> None:
        if self.vectors < 1 or self.interval < 1:
            raise InputError(
                f"vectors and interval have to be positive, got {self.vectors} and "
                f"{self.interval}"
            )


def train_spectral(
    run: TrainingRun,
    layers: Mapping[str, SpectralLinear],
    stage: Stage,
    schedule: Schedule,
    options: SpectralOptions,
) -> None:
    """Train `stage`, whose parameters include those of `layers` that need gradients."""

    def normalize() -> None:
        for layer in layers.values():
            layer.normalize()

    stage = replace(stage, after_step=normalize)
    for number, first in enumerate(range(0, schedule.steps, options.interval)):
        if number < run.state.stage:
            continue
        done = len(run.state.losses.get(stage.name, []))
        if number > 0 and done <= first:
            _turn(layers, number, schedule.seed)
        until = min(first + options.interval, schedule.steps)
        run.train_stage(number, stage, schedule, until)


def _turn(layers: Mapping[str, SpectralLinear], number: int, seed: int) -> None:
    for place, layer in enumerate(layers.values()):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) * 4099 + place)
        layer.choose(generator)
        if number % layer.rounds == 0:
            layer.decompose()


def trained_parameters(layers: Mapping[str, SpectralLinear]) -> Parameters:
    """Return s, the chosen vectors and biases, by name."""
    return {
        f"{name}.{own}": parameter
        for name, layer in layers.items()
        for own, parameter in layer.named_parameters()
        if parameter.requires_grad
    }
