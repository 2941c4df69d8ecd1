"""The second factor of a layer as kernels read it, plain or pivoted.

plain      y = A z + b,                      A (out, r)
pivoted    y[o] = z[p]        where p = position[o] < r
           y[o] = A[p - r] z + b[o]          elsewhere, A (out - r, r)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import ModelError
from spectrim.layers import FactoredLinear
from spectrim.layers.pivoted import PivotedLinear


@dataclass(frozen=True)
class Second:
    """weight (out, r), or (out - r, r) with position (out,); bias (out,) or None.

    place: the inverse of `position`, where it is known already.
    """

    weight: Tensor
    bias: Tensor | None = None
    position: Tensor | None = None
    place: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return len(self.weight) if self.position is None else len(self.position)

    def full(self) -> Tensor:
        """Return the factor (out, r), with the identity's rows among the others."""
        if self.position is None:
            return self.weight
        identity = torch.eye(self.rank, dtype=self.weight.dtype, device=self.weight.device)
        return torch.cat([identity, self.weight])[self.position]

    def apply(self, z: Tensor) -> Tensor:
        """Map (..., r) to (..., out)."""
        return torch.nn.functional.linear(z, self.full(), self.bias)


def is_readable(layer: FactoredLinear) -> bool:
    """Return whether kernels can read the layer: plain linear children of a known kind."""
    children = (layer.first, getattr(layer, "coefficients", getattr(layer, "left", None)))
    return all(type(child) is torch.nn.Linear for child in children)


def second_of(layer: FactoredLinear) -> Second:
    """Return the second factor of a plain, pivoted or shared layer. Raises ModelError."""
    if isinstance(layer, PivotedLinear):
        position, own = layer.position(), layer.coefficients.bias
        bias = None
        if own is not None:
            bias = torch.cat([own.new_zeros(layer.rank), own])[position]
        return Second(layer.coefficients.weight, bias, position)
    left = getattr(layer, "left", None)
    if type(left) is not torch.nn.Linear:
        raise ModelError(f"{type(layer).__name__} has no second factor that kernels support")
    return Second(left.weight, left.bias)
