"""The second factor of a pivoted layer without concatenation: one buffer, one gather.

    buffer = [z, C z]  (tokens, out),   y = buffer[:, position]

`torch.cat` would write `C z` a second time, which at many tokens takes as long as the product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.layers import FactoredLinear
from spectrim.layers.pivoted import PivotedLinear

FEW = 32
"""Tokens below which the plain way's fewer calls weigh more than what it writes twice."""


def finish(layer: FactoredLinear, z: Tensor) -> Tensor:
    """Return the layer's output (..., out) from z (..., rank).

    The buffer is not used with gradients, autocast, a replaced child or a compiler, which does
    better alone.
    """
    if z.numel() < FEW * z.shape[-1] or not _bufferable(layer):
        return layer.finish(z)
    assert isinstance(layer, PivotedLinear)
    rank, others = layer.rank, layer.coefficients
    tokens = z.reshape(-1, rank)
    buffer = z.new_empty(tokens.shape[0], layer.out_features)
    buffer[:, :rank] = tokens
    if others.bias is None:
        torch.mm(tokens, others.weight.T, out=buffer[:, rank:])
    else:
        torch.addmm(others.bias, tokens, others.weight.T, out=buffer[:, rank:])
    return buffer.index_select(1, layer.position()).view(*z.shape[:-1], layer.out_features)


def _bufferable(layer: FactoredLinear) -> bool:
    return (
        isinstance(layer, PivotedLinear)
        and type(layer.coefficients) is nn.Linear
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(layer.coefficients.weight.device.type)
    )
