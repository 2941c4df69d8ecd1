"""What is looked at before and after a checkpoint is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from spectrim.errors import CheckpointError, InputError, ModelError

INDEX = "model.safetensors.index.json"
_SHOWN = 5


def check_directory(directory: Path) -> None:
    """Raises InputError for what is no model directory, CheckpointError for a damaged one."""
    if not directory.exists():
        raise InputError(f"there is no directory {directory}")
    if not directory.is_dir():
        raise InputError(f"{directory} is a file, expected a model directory")
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} has no config.json, so it is not a model directory")
    read_json(directory / "config.json")
    files = weight_files(directory)
    if not files:
        raise CheckpointError(_no_weights(directory))
    for file in files:
        _check_file(file)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that the index names, or all there are."""
    index = directory / INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map, so its tensors cannot be found")
    names = sorted({str(name) for name in weight_map.values()})
    if strange := [name for name in names if not name or Path(name).name != name]:
        raise CheckpointError(f"{index} points outside the checkpoint: {strange[0]!r}")
    return [directory / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is not a JSON mapping."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a mapping")
    return value


def check_loaded(info: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError unless each tensor was found, expected, and of the right shape."""
    mismatched = [
        f"{key} {tuple(saved)} instead of {tuple(wanted)}"
        for key, saved, wanted in info["mismatched_keys"]
    ]
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(mismatched),
        "unreadable": sorted(map(str, info.get("error_msgs") or ())),
    }
    if any(found.values()):
        parts = [f"{_listed(keys)} {what}" for what, keys in found.items() if keys]
        raise CheckpointError(f"{name} is incomplete or foreign: {'; '.join(parts)}")


def check_weights(model: nn.Module) -> None:
    """Raises ModelError naming the first tensor that holds a NaN or an infinity."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        bad = parameter.numel() - int(torch.isfinite(parameter.detach()).sum())
        if bad:
            raise ModelError(
                f"{name} {tuple(parameter.shape)} has {bad} values that are NaN or infinite; "
                "the checkpoint is damaged or its training diverged"
            )


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; the index names it")
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or damaged: {error}") from error


def _no_weights(directory: Path) -> str:
    if pickles := sorted(path.name for path in directory.glob("*.bin")):
        return (
            f"{directory} has its weights only as a pickle ({pickles[0]}), which can run code "
            "when opened; convert it to safetensors first"
        )
    return f"{directory} has no safetensors weights"


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}"
