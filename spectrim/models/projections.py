"""Products of a layer's weight with its tokens, W x and W^T g, mostly without computing them.

    z = W x       its output y less its bias               (n, out)
    z = W^T g     the gradient for the layer's own input    (n, in)

The passes over the model compute both anyway. A product is made where they do not hold it to
full precision (a model in half precision, a layer of another kind), or where the layer holds
another weight than the one that is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.models.linear import DENSE_TYPES, get_bias, get_weight
from spectrim.statistics import at_least_float32

_PRECISE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class LayerProducts:
    """original: the weight (out, in) that is asked about, where the module holds another."""

    module: nn.Module
    original: Tensor | None = None

    def outputs(self, x: Tensor, y: Tensor) -> Tensor:
        """W x for each row of x (n, in), (n, out); y what the layer gave."""
        if not self._as_computed(y):
            return at_least_float32(x) @ at_least_float32(self._weight).T
        bias = get_bias(self.module)
        return y if bias is None else y - bias

    def gradients(self, g: Tensor, back: Tensor | None) -> Tensor:
        """W^T g for each row of g (n, out), (n, in); back what the backward pass gave."""
        if back is None or not self._as_computed(back):
            return at_least_float32(g) @ at_least_float32(self._weight)
        return back

    @property
    def _weight(self) -> Tensor:
        given = get_weight(self.module) if self.original is None else self.original
        return given.detach()

    def _as_computed(self, rows: Tensor) -> bool:
        own = self.original is None and type(self.module) in DENSE_TYPES
        return own and rows.dtype == get_weight(self.module).dtype and rows.dtype in _PRECISE
