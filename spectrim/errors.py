"""Errors that a user can act on: what was wrong, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SpectrimError(Exception):
    """Base class of the errors that a user can fix; the command line exits with code 2."""


class InputError(SpectrimError):
    """A path, text, option or recipe that cannot be used."""


class UnknownNameError(InputError):
    """A name that is not in a registry; the message names the nearest and lists all."""

    def __init__(self, kind: str, name: str, available: Iterable[str]):
        names = sorted(available)
        known = ", ".join(names) or "none"
        super().__init__(
            f"unknown {kind} '{name}'{did_you_mean(name, names)}; available: {known}"
        )


def did_you_mean(name: str, available: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the available name nearest to `name`, else ""."""
    near = get_close_matches(name, list(available), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


class ModelError(SpectrimError):
    """A model that cannot be compressed as requested (no matching layer, unusable weights)."""


class NumericalError(SpectrimError):
    """A decomposition that cannot be computed from the given numbers."""


class CheckpointError(SpectrimError):
    """A saved artifact that is incomplete, foreign, or does not fit the model."""


class DamagedFileError(CheckpointError):
    """A truncated or altered file of the cache; it can be computed again."""


class NumericalWarning(UserWarning):
    """A valid result that took more damping or a stated fallback."""


__all__ = [
    "CheckpointError",
    "DamagedFileError",
    "InputError",
    "ModelError",
    "NumericalError",
    "NumericalWarning",
    "SpectrimError",
    "UnknownNameError",
    "did_you_mean",
]
