"""One product for the first factors of layers that read the same tensor.

    [z_1; ..; z_n] = [R_1; ..; R_n] x,   y_k = finish_k(z_k)

(q, k and v; gate and up.) Layers share an input if it is the identical tensor object: the
first layer that reads it multiplies for all, and every other takes its slice once, if it gets
the same unchanged object; any other tensor starts a new product. The stacked factors are one
tensor of which each layer's own weight is a view, so nothing is stored twice.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.inference.column_major import faster_by_columns
from spectrim.layers import FactoredLinear


def packable(layer: FactoredLinear) -> bool:
    """Return whether the first factor is a plain linear layer with its weight stored by rows.

    On a CPU packing saves only the calls, less than storage by columns does.
    """
    plain = type(layer.first) is nn.Linear and not layer.first.weight.is_meta
    return plain and not faster_by_columns(layer.first.weight)


class PackedFirst:
    """The product of several first factors; `reader(layer)` is one layer's share in it.

    State between two readers: the input with its version and all z, in one tuple since threads
    may share a model, and a bit for each reader that has not taken its slice.
    """

    weight: Tensor
    bias: Tensor | None
    _kept: tuple[Tensor, int, tuple[Tensor, ...]] | None
    _waiting: int

    def __init__(self, layers: Sequence[FactoredLinear]):
        self.firsts = list({id(layer.first): layer.first for layer in layers}.values())
        self.readers = 0
        self._sizes = [first.out_features for first in self.firsts]
        self._stack()

    def reader(self, layer: FactoredLinear) -> Reader:
        """Return the reader of a layer. Raises StopIteration for a layer outside the group."""
        position = next(i for i, first in enumerate(self.firsts) if first is layer.first)
        self.readers += 1
        return Reader(self, layer.first, 1 << (self.readers - 1), position)

    def product(self, x: Tensor, reader: int) -> tuple[Tensor, ...]:
        """Return every first factor's z for `x`, cached if another reader got the same `x`."""
        kept, version = self._kept, _version(x)
        if kept is not None and kept[0] is x and kept[1] == version and self._waiting & reader:
            self._waiting &= ~reader
            if not self._waiting:
                self._kept = None
            return kept[2]
        if not torch.compiler.is_compiling() and self._moved():
            self._stack()
        z = nn.functional.linear(x, self.weight, self.bias).split(self._sizes, -1)
        self._kept = (x, version, z)
        self._waiting = ((1 << self.readers) - 1) & ~reader
        return z

    def unpack(self) -> None:
        """Give each layer tensors of its own again."""
        for first in self.firsts:
            for parameter in first.parameters():
                parameter.data = parameter.data.clone()
        self._kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedFirst:
        """Copy the product for the copied layers, with a stack of their own."""
        copied = object.__new__(PackedFirst)
        memo[id(self)] = copied
        copied.firsts = copy.deepcopy(self.firsts, memo)
        copied.readers, copied._sizes = self.readers, self._sizes
        copied._stack()
        return copied

    def _moved(self) -> bool:
        """Return whether some weight is no longer the view (after `to` or an assignment)."""
        expected = self.weight.data_ptr()
        for first in self.firsts:
            if first.weight.data_ptr() != expected:
                return True
            expected += first.weight.numel() * first.weight.itemsize
        return False

    def _stack(self) -> None:
        self._kept = None
        self._waiting = 0
        with torch.inference_mode(False), torch.no_grad():
            self.weight = _joined([first.weight for first in self.firsts])
            self.bias = None
            if any(first.bias is not None for first in self.firsts):
                self.bias = torch.cat([_bias(first) for first in self.firsts])


@dataclass
class Reader:
    """The first factor of one layer: called with it and the input (..., in), returns its z.

    With gradients on, or if the layer's child was replaced, it is the plain product.
    """

    packed: PackedFirst
    first: nn.Linear
    bit: int
    position: int

    def __call__(self, layer: FactoredLinear, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or layer.first is not self.first:
            return layer.first(x)
        return self.packed.product(x, self.bit)[self.position]


def _version(x: Tensor) -> int:
    """Count changes in place; those of tensors made in inference mode are not counted."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _joined(weights: Sequence[Tensor]) -> Tensor:
    """Return all rows as one tensor, of which the weights become views."""
    joined = torch.cat([weight.data for weight in weights])
    start = 0
    for weight in weights:
        weight.data = joined[start : start + len(weight)]
        start += len(weight)
    return joined


def _bias(first: nn.Linear) -> Tensor:
    return first.weight.new_zeros(first.out_features) if first.bias is None else first.bias.data
