"""Moments on labels that the model draws, as often as asked for."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from spectrim.selection.moments import Moments, moments
from spectrim.selection.objective import Objective
from spectrim.selection.softened import softened
from spectrim.selection.spectral import SpectralLinear


class Drawing(Protocol):
    """The options of estimators that draw labels."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def draws(self) -> int: ...
    @property
    def seed(self) -> int: ...


def drawn_moments(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: Drawing,
) -> list[dict[str, Moments]]:
    """One set per draw: a forward and a gradient pass each."""
    temperature = options.temperature or 1.0
    seeds = (options.seed * 1_000_003 + number for number in range(options.draws))
    return [
        moments(model, layers, softened(model, objective, temperature, seed, "squares"))
        for seed in seeds
    ]
