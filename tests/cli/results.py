"""What a command wrote: ranks, tensors, and logits of the model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from spectrim.checkpoint import load
from tests.tiny_models import tiny_tokens


def ranks_in(directory: Path) -> dict[str, int]:
    config = json.loads((directory / "config.json").read_text())
    return {n: entry["rank"] for n, entry in config["quantization_config"]["layers"].items()}


def tensors_in(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same_tensors(first: Path, second: Path) -> bool:
    one, two = tensors_in(first), tensors_in(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@torch.no_grad()
def logits(directory: Path) -> torch.Tensor:
    return load(directory)[0](tiny_tokens()).logits
