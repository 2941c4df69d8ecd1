"""A spectral adapter as a plain LoRA, which PEFT, vLLM, llama.cpp and diffusers load.

    W' - W = B A,   lora_B = B (out, r),  lora_A = A (r, in),  lora_alpha = r

One rank for all modules, padded with zeros, no patterns, the scale in the factors, and an
ordinary initialization in the file: the form that every server accepts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from spectrim.adapters._spectral import truncated_pair
from spectrim.adapters._tuner import spectral_layers
from spectrim.errors import InputError
from spectrim.runtime.files import write_text
from spectrim.runtime.output_dir import MARKER, output_directory

_PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraExport:
    """A plain LoRA.

    Attributes:
        config: its `LoraConfig`, with one rank for all modules.
        state: its tensors in float32, by the names in a file of PEFT.
        error: ||B A - (W' - W)||_F over ||W' - W||_F, over all modules; 0 where nothing is cut.
    """

    config: LoraConfig
    state: dict[str, Tensor]
    error: float


@torch.no_grad()
def to_lora(model: nn.Module, rank: int | None = None, adapter: str = "default") -> LoraExport:
    """Return an adapter of a PEFT model as a plain LoRA of the base model.

    Args:
        rank: of the result; modules whose update has a larger one are truncated in the best
            way, and `error` states the loss. None: as large as needed for none.

    Raises:
        InputError: there is no spectral adapter of that name, or it has modules to save.
    """
    if rank is not None and rank < 1:
        raise InputError(f"rank is {rank}, expected 1 or more")
    layers = {n: layer for n, layer in spectral_layers(model) if adapter in layer._params}
    if not layers:
        raise InputError(f"the model has no spectral adapter '{adapter}' to export")
    source = getattr(model, "peft_config", {}).get(adapter)
    if getattr(source, "modules_to_save", None):
        raise InputError("a plain LoRA has no modules to save; merge the model instead")
    pairs, cut, whole = {}, 0.0, 0.0
    for name, layer in layers.items():
        up, down = layer.lora_pair(adapter)
        largest = min(rank or down.shape[0], layer.in_features, layer.out_features)
        whole += _squared_norm(up, down)
        if largest < down.shape[0]:
            up, down, dropped = truncated_pair(up, down, largest)
            cut += dropped
        pairs[_PREFIX + name.removeprefix(_PREFIX)] = up, down
    size = max(down.shape[0] for _, down in pairs.values())
    state = {}
    for name, (up, down) in pairs.items():
        missing = size - down.shape[0]
        state[f"{name}.lora_A.weight"] = pad(down, (0, 0, 0, missing)).float().contiguous()
        state[f"{name}.lora_B.weight"] = pad(up, (0, missing)).float().contiguous()
    transposed = any(isinstance(layer.base_layer, Conv1D) for layer in layers.values())
    error = (cut / whole) ** 0.5 if cut > 0 else 0.0
    return LoraExport(_config(source, list(pairs), size, transposed), state, error)


def save_lora(export: LoraExport, directory: str | Path, overwrite: bool = False) -> Path:
    """Write a plain LoRA. Raises InputError for a directory that cannot be used."""
    with output_directory(directory, overwrite) as partial:
        save_file(export.state, partial / WEIGHTS, {"format": "pt"})
        export.config.save_pretrained(str(partial))
        facts = {"lora": {"rank": export.config.r, "error": export.error}}
        write_text(partial / MARKER, json.dumps(facts, indent=2, sort_keys=True))
    return Path(directory)


def _config(source: Any, names: list[str], rank: int, transposed: bool) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        fan_in_fan_out=transposed,
        target_modules=sorted(name.removeprefix(_PREFIX) for name in names),
        task_type=getattr(source, "task_type", None),
        base_model_name_or_path=getattr(source, "base_model_name_or_path", None),
        inference_mode=True,
    )


def _squared_norm(up: Tensor, down: Tensor) -> float:
    return float(((up.T @ up) * (down @ down.T)).sum())
