"""Identify a model in cache keys: all that its forward pass depends on.

every byte of its parameters and of the buffers that checkpoints hold,
its configuration without names and paths,
the classes and settings of its modules, the source of those from outside transformers,
the version of transformers
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

_NAMES = (
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "auto_map",
    "architectures", "id2label", "label2id", "dtype", "torch_dtype", "quantization_config",
)  # fmt: skip
"""Entries of a configuration that no forward pass depends on: names, paths, how it was loaded
(the tensors have their own dtype), and how it was compressed (the modules show that)."""
_LIBRARIES = ("torch", "transformers", "spectrim", "builtins")
_REMOTE = "transformers_modules"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_THREADS = min(4, os.cpu_count() or 1)


def model_fingerprint(model: nn.Module) -> str:
    """Return a sha256 over the model's architecture and every byte of its tensors."""
    digest = hashlib.sha256(architecture_fingerprint(model).encode())
    tensors = dict(_tensors(model))
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, value in zip(
            tensors, pool.map(_tensor_digest, tensors.values()), strict=True
        ):
            digest.update(name.encode() + value)
    return digest.hexdigest()


def architecture_fingerprint(model: nn.Module) -> str:
    """Return a sha256 over all but the tensors: configuration, modules, code, version."""
    config: Any = getattr(model, "config", None)
    described = {
        "class": _class_name(model),
        "config": _without_names(config.to_dict()) if hasattr(config, "to_dict") else None,
        "attention": getattr(config, "_attn_implementation", None),
        "modules": [[n, _class_name(m), m.extra_repr()] for n, m in model.named_modules()],
        "code": _code_digests(model),
        "transformers": transformers.__version__,
    }
    text = _ADDRESS.sub("", json.dumps(described, sort_keys=True, default=str))
    return hashlib.sha256(text.encode()).hexdigest()


def files_fingerprint(files: Sequence[Path]) -> str:
    """Return a sha256 over the names and every byte of the files."""
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_file_digest, files))
    named = [[path.name, digest] for path, digest in zip(files, digests, strict=True)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__qualname__}"


def _without_names(values: Any) -> Any:
    if isinstance(values, dict):
        kept = ((str(key), value) for key, value in values.items() if key not in _NAMES)
        return {key: _without_names(value) for key, value in kept}
    return values


def _code_digests(model: nn.Module) -> list[list[str]]:
    """Name and digest of the sources of modules that no library brings; of code that came with
    a checkpoint all its files."""
    names = {type(module).__module__ for module in model.modules()}
    own = {name for name in names if name.split(".")[0] not in _LIBRARIES}
    for name in [name for name in own if name.split(".")[0] == _REMOTE]:
        package = name.rpartition(".")[0] + "."
        own |= {other for other in list(sys.modules) if other.startswith(package)}
    return sorted(_sources(own))


def _sources(names: Iterable[str]) -> Iterator[list[str]]:
    for name in names:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is not None and Path(path).is_file():
            yield [name.rpartition(".")[2], _file_digest(Path(path))]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and persistent buffers by name, tied ones once."""
    yield from model.named_parameters()
    transient = {
        f"{name}.{buffer}".lstrip(".")
        for name, module in model.named_modules()
        for buffer in module._non_persistent_buffers_set
    }
    yield from ((n, buffer) for n, buffer in model.named_buffers() if n not in transient)


def _tensor_digest(tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    for part in _plain(tensor.detach()):
        if not part.is_meta:
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that a tensor of a library's own class consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))
