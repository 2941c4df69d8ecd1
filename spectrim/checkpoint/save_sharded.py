"""Open a checkpoint that is larger than memory, and write a compressed one shard by shard."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from spectrim.checkpoint.load import check_dense, load_tokenizer, resolve
from spectrim.checkpoint.loading_errors import explain
from spectrim.checkpoint.save import (
    SaveOptions,
    check_extra_name,
    write_files,
)
from spectrim.checkpoint.validation import (
    INDEX,
    check_causal_directory,
    check_finite_tensors,
    overflow_remedy,
    weight_files,
)
from spectrim.checkpoint.verify import verify_streamed
from spectrim.errors import CheckpointError
from spectrim.models.offload import StreamedModel
from spectrim.runtime.files import write_text
from spectrim.runtime.output_dir import output_directory

_DOWNLOADED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")


class PartTensors(Protocol):
    """Return the tensors to store of a part of `source`, by their full names."""

    @property
    def source(self) -> StreamedModel: ...

    def __call__(self, name: str) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class OffloadedCheckpoint:
    streamed: StreamedModel
    tokenizer: Any


def open_streamed(
    name: str | Path, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> OffloadedCheckpoint:
    """Open a dense checkpoint without reading its weights into memory.

    Raises:
        InputError: The model cannot be found.
        CheckpointError: The checkpoint is damaged.
        ModelError: It is compressed or quantized, or cannot be streamed.
    """
    directory = _local(name)
    check_causal_directory(directory)
    check_dense(directory)
    files, options = weight_files(directory), {"trust_remote_code": trust_remote_code}
    with explain(directory):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        streamed = StreamedModel(config, files, dtype, trust_remote_code)
        if (directory / "generation_config.json").is_file():
            streamed.model.generation_config = GenerationConfig.from_pretrained(directory)
    return OffloadedCheckpoint(streamed, load_tokenizer(directory, options))


def save_streamed(
    model: PreTrainedModel,
    parts: PartTensors,
    tokenizer: Any,
    directory: str | Path,
    options: SaveOptions,
) -> Path:
    """Write the tensors of one part after the other, each as a shard of its own.

    The directory appears whole or not at all. `model` has the structure and the config of what
    is written.

    Raises:
        CheckpointError: the tensors do not fit the model.
        InputError: As `save_compressed`.
        ModelError: A tensor is not finite.
    """
    for name in options.extras:
        check_extra_name(name)
    config = model.config.quantization_config
    with output_directory(directory, options.overwrite) as partial:
        written, samples = _write_shards(parts, partial)
        model.config.dtype = next(iter(samples.values())).dtype
        _check_names(parts.source, written, set(model.state_dict()), config.untied)
        model.config.architectures = [type(model).__name__]
        if model.is_remote_code():
            own: Any = model.config
            custom_object_save(model, partial, config=own)
        model.config.save_pretrained(partial)
        if model.can_generate():
            parts.source.model.generation_config.save_pretrained(partial)
        verify_streamed(partial, model, samples)
        write_files(tokenizer, partial, options)
    return Path(directory)


def _write_shards(parts: PartTensors, directory: Path) -> tuple[set[str], dict[str, Tensor]]:
    """Return the names of what was written, and the smallest tensor of each shard."""
    names = parts.source.parts
    weight_map: dict[str, str] = {}
    samples: dict[str, Tensor] = {}
    size = 0
    for number, tensors in enumerate(filter(None, map(parts, names)), 1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        smallest = _smallest(tensors)
        check_finite_tensors(tensors, overflow_remedy(tensors[smallest].dtype))
        save_file(tensors, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(t.numel() * t.element_size() for t in tensors.values())
        samples[smallest] = tensors[smallest].clone()
        tensors.clear()
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(directory / INDEX, json.dumps(index, indent=1))
    return set(weight_map), samples


def _smallest(tensors: dict[str, Tensor]) -> str:
    """Return the name of the smallest tensor of the model's dtype."""
    floating = {n: t.nbytes for n, t in tensors.items() if t.is_floating_point()}
    return min(floating or tensors, key=lambda name: tensors[name].nbytes)


def _check_names(
    streamed: StreamedModel, written: set[str], expected: set[str], untied: bool
) -> None:
    tied = set() if untied else {name for name in expected if streamed.tied_to(name)}
    if wrong := written ^ (expected - tied):
        raise CheckpointError(
            f"{len(wrong)} tensors are missing or foreign in what is to be written: "
            f"{', '.join(sorted(wrong)[:3])}"
        )


def _local(name: str | Path) -> Path:
    source = resolve(name)
    if isinstance(source, Path):
        return source
    with explain(source):
        return Path(snapshot_download(source, allow_patterns=list(_DOWNLOADED)))
