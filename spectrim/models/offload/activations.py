"""Tensors between blocks: in memory up to a number of bytes, beyond that in files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from spectrim.runtime.files import read_tensors, write_tensors

Key = tuple[str, int, int]
"""Kind ("input" or "gradient"), block and batch."""


class Activations:
    """Raises InputError when the disk is full, CheckpointError for a damaged file."""

    def __init__(self, directory: Path, memory_bytes: int):
        self.directory = directory
        self.memory_bytes = memory_bytes
        self.used = 0
        self._held: dict[Key, Tensor] = {}

    @property
    def durable(self) -> bool:
        """All of them are in files, so that another process can go on with them."""
        return self.memory_bytes == 0

    def put(self, key: Key, tensor: Tensor) -> None:
        self.drop(key)
        size = tensor.numel() * tensor.element_size()
        if self.used + size <= self.memory_bytes:
            self._held[key] = tensor.detach()
            self.used += size
        else:
            write_tensors(self._path(key), {"value": tensor}, {}, sync=False)

    def get(self, key: Key) -> Tensor:
        """Return a tensor, in memory of its own: products of one that lies in a file depend, in
        the last bit, on where it begins there."""
        if key in self._held:
            return self._held[key]
        return read_tensors(self._path(key))[0]["value"].clone()

    def drop(self, key: Key) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.used -= held.numel() * held.element_size()
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        return self.directory / "{}-{:05d}-{:06d}.safetensors".format(*key)
