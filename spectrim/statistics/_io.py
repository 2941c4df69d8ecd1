"""Calibrations on disk: one safetensors file, provenance in its header."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from spectrim.errors import CheckpointError
from spectrim.runtime.files import read_tensors, write_tensors
from spectrim.statistics import STATISTICS
from spectrim.statistics._result import Calibration

_SAMPLES = 1024


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Raises InputError when the place cannot be written."""
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
    """Raises InputError for a missing file, CheckpointError for a damaged one."""
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
        raise CheckpointError(f"{path} holds no calibration: {error}") from error


def model_fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes and an even sample of every parameter's values."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // _SAMPLES)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()
