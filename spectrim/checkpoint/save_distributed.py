"""Several processes write one checkpoint: each its shards, the first the index and texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.save import (
    SaveOptions,
    prepare_saving,
    save_compressed,
    write_files,
)
from spectrim.checkpoint.validation import INDEX
from spectrim.checkpoint.verify import verify_saved
from spectrim.errors import InputError
from spectrim.layers.quantized import CompressedLinear
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.runtime import distributed
from spectrim.runtime.files import write_text
from spectrim.runtime.output_dir import output_directory

_LENGTH = 8
"""Bytes at the start of a safetensors file that say how long its header is."""


def save_together(
    model: PreTrainedModel,
    tokenizer: Any,
    directory: str | Path,
    config: SpectrimConfig,
    options: SaveOptions,
) -> Path:
    """`save_compressed` by all processes, each of which holds the whole model.

    A model whose factors are quantized is written by the first process alone. Raises, in every
    process, what `save_compressed` raises in one, and InputError where the processes do not
    see one directory.
    """
    given = (model, tokenizer, directory, config, options)
    quantized = any(isinstance(module, CompressedLinear) for module in model.modules())
    if distributed.num_processes() == 1 or quantized:
        return distributed.run_on_main(lambda: save_compressed(*given))
    prepare_saving(model, config, options)
    with ExitStack() as stack:
        opened = None
        with distributed.raise_together():
            if distributed.is_main_process():
                opened = stack.enter_context(output_directory(directory, options.overwrite))
        [partial, *_] = distributed.all_gather(opened)
        assert partial is not None
        files: list[str] = []
        with distributed.raise_together():
            files = _write_own(model, partial, options)
        files = [file for own in distributed.all_gather(files) for file in own]
        with distributed.raise_together():
            if distributed.is_main_process():
                _assemble(model, partial, files)
                verify_saved(partial, model, options.reload)
                write_files(tokenizer, partial, options)
            stack.close()
    return Path(directory)


def _write_own(model: PreTrainedModel, directory: Path, options: SaveOptions) -> list[str]:
    """Write this process's tensors as their own checkpoint; return the tensor files."""
    state = model.state_dict()
    owners = _owners(model, state)
    own = {
        name: state[name]
        for name, owner in owners.items()
        if owner == distributed.process_index()
    }
    place = _part(directory, distributed.process_index())
    if own or distributed.is_main_process():
        with _writing_here(model):
            model.save_pretrained(place, state_dict=own, max_shard_size=options.max_shard_size)
    return [str(file.relative_to(directory)) for file in sorted(place.glob("*.safetensors"))]


def _owners(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, int]:
    """Return the process that writes each tensor, with the bytes spread evenly.

    Decoder blocks stay whole, and so do tensors outside of them that share storage.
    """
    blocks = tuple(f"{name}." for name, _ in decoder_blocks(model))
    units: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        block = next((prefix for prefix in blocks if name.startswith(prefix)), None)
        units.setdefault(block or tensor.untyped_storage().data_ptr(), []).append(name)
    sizes = [float(sum(state[name].nbytes for name in names)) for names in units.values()]
    owners = distributed.balanced_bins(sizes, distributed.num_processes())
    return {
        name: owner
        for owner, names in zip(owners, units.values(), strict=True)
        for name in names
    }


@contextmanager
def _writing_here(model: PreTrainedModel) -> Iterator[None]:
    """Let this process write; transformers leaves that to the first process of a group."""
    name = "should_save_on_this_rank"
    object.__setattr__(model, name, lambda is_main_process: True)
    try:
        yield
    finally:
        object.__delattr__(model, name)


def _part(directory: Path, number: int) -> Path:
    return directory / f"part-{number}"


def _assemble(model: PreTrainedModel, directory: Path, files: list[str]) -> None:
    """Join the parts of all processes into one checkpoint with an index."""
    weight_map: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors, data = _described(directory / file)
        weight_map |= dict.fromkeys(tensors, name)
        size += data
        (directory / file).rename(directory / name)
    parts = [_part(directory, number) for number in range(distributed.num_processes())]
    for text in parts[0].iterdir():
        if text.name != INDEX:
            text.rename(directory / text.name)
    for part in filter(Path.is_dir, parts):
        shutil.rmtree(part)
    metadata = {"total_parameters": model.num_parameters(), "total_size": size}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")


def _described(file: Path) -> tuple[list[str], int]:
    """Names of the tensors, and their bytes. Raises InputError for a file that is not here."""
    if not file.is_file():
        raise InputError(
            f"another process wrote {file}, which is not to be seen here; all processes "
            "have to write to one directory of a shared file system"
        )
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    with file.open("rb") as raw:
        header = int.from_bytes(raw.read(_LENGTH), "little")
    return names, file.stat().st_size - header - _LENGTH
