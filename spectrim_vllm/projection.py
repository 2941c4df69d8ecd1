"""Collect the tensors of one projection while vLLM loads a checkpoint, in any order."""

from __future__ import annotations

from torch import Tensor

from spectrim_vllm.config_entries import Entry
from spectrim_vllm.tensor_parallel import (
    LocalFactors,
    LocalSlice,
    expected_shapes,
    local_factors,
)

_BIASES = ("left.bias", "pivots.bias", "coefficients.bias")


class Projection:
    def __init__(self, name: str, entry: Entry | None, local: LocalSlice):
        self.name = name
        self.entry = entry
        self.local = local
        self.shapes = expected_shapes(entry, local.shape)
        self.tensors: dict[str, Tensor] = {}

    def take(self, name: str, tensor: Tensor) -> None:
        """Keep this process's part of one tensor.

        Raises:
            ValueError: The projection has no such tensor, or one of another shape.
        """
        if name not in self.shapes:
            raise ValueError(f"{self.name} has no {name}; it has {', '.join(self.shapes)}")
        if self.entry is not None:
            tensor = _as_stored(tensor, self.shapes[name])
        if tuple(tensor.shape) != self.shapes[name]:
            raise ValueError(
                f"{self.name}.{name} is {tuple(tensor.shape)}, expected {self.shapes[name]}"
            )
        parts = {name: tensor}
        if self.entry is not None and self.entry.stored is not None:
            stored, out = self.entry.stored, self.local.shape[0]
            parts = stored.cut(name, tensor, self.entry.rank, out)
        self.tensors |= {part: self.local.cut(part, whole) for part, whole in parts.items()}

    def local_factors(self, basis: Tensor | None, has_bias: bool) -> LocalFactors:
        """Return what to multiply with, on another layer's `basis` where one is given.

        Raises:
            ValueError: A tensor is missing in the checkpoint.
        """
        needed = [name for name in self._parts() if has_bias or name not in _BIASES]
        if missing := [name for name in needed if name not in self.tensors]:
            raise ValueError(
                f"the checkpoint has no {', '.join(f'{self.name}.{name}' for name in missing)}"
            )
        tensors = self.tensors if basis is None else self.tensors | {"right.weight": basis}
        return local_factors(self.entry, tensors, self.local)

    def _parts(self) -> list[str]:
        """Return the names of the tensors that the layer multiplies with."""
        if self.entry is None or self.entry.stored is None:
            return list(self.shapes)
        return ["right.weight", "left.weight"] if self.entry.rank else ["weight"]


def _as_stored(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo the transposition that vLLM applies to weights of models made of `Conv1D` (GPT-2).

    Factors are never stored transposed.
    """
    fits = tensor.is_contiguous() and tuple(tensor.shape) == shape
    if fits or tensor.dim() != 2 or tuple(tensor.T.shape) != shape:
        return tensor
    return tensor.T if tensor.T.is_contiguous() else tensor
