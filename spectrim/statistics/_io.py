"""Calibrations on disk: one safetensors file each, with the provenance in its header."""

from __future__ import annotations

from pathlib import Path

import torch

from spectrim.errors import CheckpointError
from spectrim.runtime.files import read_tensors, write_tensors
from spectrim.statistics._registry import STATISTICS
from spectrim.statistics._result import Calibration


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration to one file.

    Raises:
        InputError: the place cannot be written to.
    """
    tensors = {
        f"{statistic}|{key}|{entry}": tensor
        for statistic, by_layer in calibration.states.items()
        for key, state in by_layer.items()
        for entry, tensor in state.items()
    }
    metadata = {
        "groups": calibration.groups,
        "counts": calibration.counts,
        "tokens": calibration.tokens,
        "provenance": calibration.provenance,
    }
    write_tensors(path, tensors, metadata)


def load_calibration(path: Path) -> Calibration:
    """Return the calibration in a file.

    Raises:
        InputError: there is no such file.
        CheckpointError: the file is damaged or foreign.
    """
    tensors, metadata = read_tensors(path)
    states: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    try:
        for name, tensor in tensors.items():
            statistic, key, entry = name.split("|")
            STATISTICS.get(statistic)
            states.setdefault(statistic, {}).setdefault(key, {})[entry] = tensor
        return Calibration(
            metadata["groups"],
            metadata["counts"],
            states,
            metadata["tokens"],
            metadata["provenance"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a calibration: {error}") from error
