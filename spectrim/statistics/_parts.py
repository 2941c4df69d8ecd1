"""Splitting a calibration by its statistics, to store them one by one, and joining it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spectrim.errors import CheckpointError
from spectrim.statistics._result import Calibration


def select(calibration: Calibration, statistic: str) -> Calibration:
    """Return the part with one statistic; the tensors are shared."""
    states = {statistic: calibration.states[statistic]}
    return replace(calibration, states=states, provenance=dict(calibration.provenance))


def concat(parts: Sequence[Calibration]) -> Calibration:
    """Join different statistics of the same tokens and layers; the tensors are shared.

    Raises CheckpointError for parts of other layers or another number of tokens.
    """
    first = parts[0]
    for part in parts:
        same_layers = part.groups == first.groups and part.counts == first.counts
        if not same_layers or part.tokens != first.tokens:
            raise CheckpointError("statistics of different layers or tokens cannot be joined")
    states = {name: state for part in parts for name, state in part.states.items()}
    return replace(
        first, states=dict(sorted(states.items())), provenance=dict(first.provenance)
    )
