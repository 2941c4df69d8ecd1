"""A layer's output from z, some rows or some features at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spectrim.inference import pivoted_gather
from spectrim.inference.tiling.nodes import Node, Values
from spectrim.inference.tiling.tile import FEATURES, Span, Tile
from spectrim.layers import FactoredLinear
from spectrim.layers.pivoted import PivotedLinear


class Second(Node):
    """finish(z) of a factored layer; z (B, T, r) is a tensor or a node.

    kernels: whether a kernel may compute it together with the operation that reads it.
    """

    PARTIAL = True

    def __init__(self, layer: FactoredLinear, z: Tensor | Node, kernels: bool = False):
        inputs = [z] if isinstance(z, Node) else []
        given = z.meta if isinstance(z, Node) else z
        shape = (*given.shape[:-1], layer.out_features)
        meta = torch.empty(shape, dtype=given.dtype, device="meta")
        super().__init__(meta, FEATURES, z.device, inputs)
        self.layer: FactoredLinear | None = layer
        self.z: Tensor | Node | None = z
        self.kernels = kernels

    def make(self, values: Values, tile: Tile) -> Tensor:
        assert self.layer is not None
        assert self.z is not None
        z = values.of(self.z, tile.whole_width(), FEATURES)
        if tile.feature is None:
            return pivoted_gather.finish(self.layer, z)
        return features(self.layer, z, tile.feature)

    def forget(self) -> None:
        self.layer = self.z = None


def features(layer: FactoredLinear, z: Tensor, span: Span) -> Tensor:
    """Return the outputs `span` alone (..., last - first) of a layer that kernels read.

    A pivoted layer keeps the order of its outputs in each of its two parts, so those of a
    span are one range of z and one range of the coefficients' rows.
    """
    first, last = span
    if not isinstance(layer, PivotedLinear):
        return _rows(getattr(layer, "left"), z, span)  # noqa: B009 - of several kinds
    position = layer.position()[first:last]
    is_pivot = position < layer.rank
    pivots, others = position[is_pivot], position[~is_pivot]
    start, begin = _start(pivots), _start(others)
    mine = z[..., start : start + len(pivots)]
    row = begin - layer.rank
    made = (
        [mine, _rows(layer.coefficients, z, (row, row + len(others)))]
        if len(others)
        else [mine]
    )
    local = torch.where(is_pivot, position - start, position - begin + len(pivots))
    return torch.cat(made, -1).index_select(-1, local)


def _rows(factor: torch.nn.Linear, z: Tensor, span: Span) -> Tensor:
    bias = None if factor.bias is None else factor.bias[span[0] : span[1]]
    return functional.linear(z, factor.weight[span[0] : span[1]], bias)


def _start(places: Tensor) -> int:
    return int(places[0]) if len(places) else 0
