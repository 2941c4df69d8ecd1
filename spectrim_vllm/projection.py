"""Gathers one projection's tensors while vLLM loads a checkpoint, in whatever order."""

from __future__ import annotations

from torch import Tensor

from spectrim_vllm.entries import Entry
from spectrim_vllm.pieces import Piece, Share, expected_shapes, piece

_BIASES = ("left.bias", "pivots.bias", "coefficients.bias")


class Projection:
    def __init__(self, name: str, entry: Entry | None, share: Share):
        self.name = name
        self.entry = entry
        self.share = share
        self.shapes = expected_shapes(entry, share.shape)
        self.tensors: dict[str, Tensor] = {}

    def take(self, name: str, tensor: Tensor) -> None:
        """Keep this process's part of one tensor. Raises ValueError for one that the
        projection does not have, or of another shape."""
        if name not in self.shapes:
            raise ValueError(f"{self.name} has no {name}; it has {', '.join(self.shapes)}")
        if self.entry is not None:
            tensor = _as_stored(tensor, self.shapes[name])
        if tuple(tensor.shape) != self.shapes[name]:
            raise ValueError(
                f"{self.name}.{name} is {tuple(tensor.shape)}, expected {self.shapes[name]}"
            )
        self.tensors[name] = self.share.cut(name, tensor)

    def piece(self, basis: Tensor | None, has_bias: bool) -> Piece:
        """What to multiply with. Raises ValueError where tensors did not come; those of
        another layer's `basis` are not this projection's."""
        wanted = [name for name in self.shapes if has_bias or name not in _BIASES]
        if missing := [name for name in wanted if name not in self.tensors]:
            raise ValueError(
                f"the checkpoint has no {', '.join(f'{self.name}.{name}' for name in missing)}"
            )
        tensors = self.tensors if basis is None else self.tensors | {"right.weight": basis}
        return piece(self.entry, tensors, self.share)


def _as_stored(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """vLLM turns the weights of models made of `Conv1D` (GPT-2) as it reads them; factors are
    never stored that way, so what came turned is turned back."""
    here = tensor.is_contiguous() and tuple(tensor.shape) == shape
    if here or tensor.dim() != 2 or tuple(tensor.T.shape) != shape:
        return tensor
    return tensor.T if tensor.T.is_contiguous() else tensor
