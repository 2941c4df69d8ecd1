"""Importance: the loss increase that removing each basis would cost. One file per estimator.

A module declares `REFERENCE`, optionally a frozen dataclass `Options`, and

    estimate(model, layers, objective, options) -> Importance

with `layers` the model's `SpectralLinear` modules by name.
"""

from spectrim.pruning.importance._importance import GradientTerm, Importance
from spectrim.registry import Registry

IMPORTANCE = Registry("importance", "spectrim.pruning.importance")

__all__ = ["IMPORTANCE", "GradientTerm", "Importance"]
