"""An elastic layer in few bits: components have scales of their own, for every rank.

    y = sum_{i < rank} Q(left_i) <Q(right_i), x> + b,   Q(W) x + b where it is dense

A group of scales runs along one component: a smaller rank is a beginning of codes and of
scales, and nothing is rounded again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.layers._elastic import ElasticLinear
from spectrim.layers.lowrank import LowRankLinear
from spectrim.layers.quantized._with_correction import CompensatedLinear
from spectrim.layers.quantized.rtn import Options, RtnLinear
from spectrim.layers.quantized.rtn_columns import RtnColumnsLinear

ROW_QUANTIZER, COLUMN_QUANTIZER = "rtn", "rtn_columns"
"""The quantizers of rows and dense weights, and of left factors."""
ELASTIC_PARTS = ("elastic_left", "elastic_right", "elastic_base")
"""Children that the tensors of a file are named after."""
Read = Callable[[str, int], Tensor]
"""(name of a tensor inside the layer, entries) -> its first entries."""


class QuantizedElasticLinear(ElasticLinear):
    """Children `elastic_right` (k, in), `elastic_left` (out, k) and `elastic_base`, or None."""

    elastic_left: RtnColumnsLinear | None
    elastic_right: RtnLinear | None

    def __init__(
        self,
        factors: tuple[RtnColumnsLinear, RtnLinear] | None,
        base: RtnLinear | None,
        bias: Tensor | None,
    ):
        nn.Module.__init__(self)
        whole = base or (factors or (None,))[0]
        assert whole is not None
        self.out_features = whole.out_features
        self.in_features = base.in_features if base else factors[1].in_features  # type: ignore[index]
        self.elastic_left, self.elastic_right = factors or (None, None)
        self.elastic_base = base
        self.bias = None if bias is None else nn.Parameter(bias)
        self.rank = None if base is not None else self.held[0]

    @property
    def held(self) -> tuple[int, bool]:
        count = 0 if self.elastic_right is None else self.elastic_right.out_features
        return count, self.elastic_base is not None

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        left, right = self.elastic_left, self.elastic_right
        assert left is not None
        assert right is not None
        return left.matrix(torch.float32)[:, :rank], right.matrix(torch.float32)[:rank]

    def forward(self, x: Tensor) -> Tensor:
        if self.rank is None and self.elastic_base is not None:
            return nn.functional.linear(x, self.elastic_base.matrix(x.dtype), self.bias)
        left, right = (factor.to(x.dtype) for factor in self.factors(self.rank or self.held[0]))
        return nn.functional.linear(nn.functional.linear(x, right), left, self.bias)


def empty_quantized(
    shape: tuple[int, int], components: int, has_dense: bool, bias: bool, options: Options
) -> QuantizedElasticLinear:
    """Return a layer for a loader to fill."""
    out_features, in_features = shape
    left = RtnColumnsLinear.empty((out_features, components), False, options)
    right = RtnLinear.empty((components, in_features), False, options)
    base = RtnLinear.empty(shape, False, options) if has_dense else None
    offset = torch.empty(out_features) if bias else None
    return QuantizedElasticLinear((left, right) if components else None, base, offset)


def cut_quantized(
    shape: tuple[int, int], rank: int | None, bias: Tensor | None, options: Options, read: Read
) -> LowRankLinear | CompensatedLinear:
    """Return the layer at one rank, None for dense, of the beginnings of the stored tensors."""
    out_features, in_features = shape
    if rank is None:
        base = RtnLinear.empty(shape, bias is not None, options)
        _fill(base, "elastic_base", read)
        _set_bias(base, bias)
        return CompensatedLinear(base, None, None)
    right = RtnLinear.empty((rank, in_features), False, options)
    left = RtnColumnsLinear.empty((out_features, rank), bias is not None, options)
    _fill(right, "elastic_right", read)
    _fill(left, "elastic_left", read)
    _set_bias(left, bias)
    layer: Any = LowRankLinear(right, left)  # type: ignore[arg-type]
    return layer


def held_by(layer: LowRankLinear) -> Read:
    """Return how a smaller rank reads the tensors of a loaded layer."""
    children = {"elastic_right": layer.right, "elastic_left": layer.left}

    def read(name: str, entries: int) -> Tensor:
        child, _, tensor = name.partition(".")
        return children[child].get_buffer(tensor)[:entries]

    return read


def _fill(layer: RtnLinear | RtnColumnsLinear, part: str, read: Read) -> None:
    for name, empty in list(layer.named_buffers()):
        setattr(layer, name, read(f"{part}.{name}", len(empty)).clone())


def _set_bias(layer: RtnLinear | RtnColumnsLinear, bias: Tensor | None) -> None:
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
