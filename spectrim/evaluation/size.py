"""Size of the model: parameters, stored bytes, bytes on disk; tied weights once.

    bytes = sum over different tensors of numel x bytes per element

Saved buffers (pivots, codes, scales) count; tensors that several modules share count once.
`disk_bytes`, with a `checkpoint`, are those of its weight files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.errors import CheckpointError
from spectrim.layers.quantized import CompressedLinear

NEEDS_ORIGINAL = False
COMMAND = "spectrim evaluate MODEL OUT --data TEXT"


@dataclass(frozen=True)
class Options:
    """Options; `checkpoint`: a saved model's directory, to report its bytes on disk as well."""

    checkpoint: str | None = None


def evaluate(
    model: PreTrainedModel,
    blocks: TokenBlocks | None,
    options: Options,
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return `parameters`, `stored_bytes` and, with a checkpoint, `disk_bytes`.

    `blocks` is unused. Raises CheckpointError for a directory without safetensors.
    """
    figures: dict[str, float] = {
        "parameters": parameters(model),
        "stored_bytes": stored_bytes(model),
    }
    if options.checkpoint is not None:
        figures["disk_bytes"] = disk_bytes(options.checkpoint)
    return figures


def parameters(model: nn.Module) -> int:
    """Return the parameters of the model, each once; a quantized weight counts its numbers."""
    quantized = sum(
        module.out_features * module.in_features
        for module in model.modules()
        if isinstance(module, CompressedLinear) and not _has_weight(module)
    )
    return quantized + sum(parameter.numel() for parameter in model.parameters())


def _has_weight(module: nn.Module) -> bool:
    """Return whether a quantized layer's numbers are parameters, as those of 2:4 layers."""
    return any(name != "bias" for name, _ in module.named_parameters(recurse=False))


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters and persistent buffers, each tensor once."""
    state = model.state_dict(keep_vars=True).values()
    stored = {id(tensor): tensor for tensor in state if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in stored.values())


def disk_bytes(checkpoint: str | Path) -> int:
    """Return the bytes of a checkpoint directory's safetensors files. Raises
    CheckpointError.
    """
    return sum(file.stat().st_size for file in _files(checkpoint))


def tensor_bytes(checkpoint: str | Path) -> dict[str, int]:
    """Return the bytes of each tensor by the checkpoint's headers. Raises CheckpointError."""
    sizes = {}
    for file in _files(checkpoint):
        for name, entry in _header(file).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                sizes[name] = end - start
    return sizes


def _files(checkpoint: str | Path) -> list[Path]:
    files = sorted(Path(checkpoint).expanduser().glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"no .safetensors in '{checkpoint}'; expected the directory of a saved model"
        )
    return files


def _header(file: Path) -> dict[str, Any]:
    """Read the header: eight bytes of length, then JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(min(length, file.stat().st_size))
    try:
        return json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{file} has no readable header; save the model again") from error
