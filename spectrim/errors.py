"""Errors a user can act on. Each message says what was wrong, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable


class SpectrimError(Exception):
    """Base of every error that is the user's to mend; the command line exits with 2 on it."""


class InputError(SpectrimError):
    """A path, text, option or recipe that cannot be used."""


class UnknownNameError(InputError):
    """A name that is not in a registry; the message lists what is available."""

    def __init__(self, kind: str, name: str, available: Iterable[str]):
        known = ", ".join(sorted(available)) or "none"
        super().__init__(f"unknown {kind} '{name}'; available: {known}")


class ModelError(SpectrimError):
    """A model that cannot be compressed as asked (no matching layer, unusable weights)."""


class NumericalError(SpectrimError):
    """A decomposition that cannot be carried out in the given numbers."""


class CheckpointError(SpectrimError):
    """A saved artefact that is incomplete, foreign, or does not fit the model."""


class DamagedFileError(CheckpointError):
    """A file of the cache that is truncated or altered; it can be made again."""


class NumericalWarning(UserWarning):
    """A result that stands, but was obtained with more damping or a stated fallback."""


__all__ = [
    "CheckpointError",
    "DamagedFileError",
    "InputError",
    "ModelError",
    "NumericalError",
    "NumericalWarning",
    "SpectrimError",
    "UnknownNameError",
]
