"""What a statistic sees of one batch at one layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectrim.linalg.products import gram


@dataclass(frozen=True)
class LayerTokens:
    """The real (unpadded) tokens of a batch at one layer.

    x (n, in) inputs, y (n, out) outputs, g (n, out) gradients of the summed token loss at
    the output or None, sequence (n,) the index of each token's sequence in the data set.
    """

    x: Tensor
    y: Tensor
    g: Tensor | None
    sequence: Tensor

    @property
    def count(self) -> int:
        return self.x.shape[0]

    @cached_property
    def gradient(self) -> Tensor:
        assert self.g is not None, "this statistic declares NEEDS_GRADIENT"
        return self.g


def sum_of_outer_products(rows: Tensor) -> Tensor:
    """`sum_t r_t r_t^T`, (d, d), in float32 or better; states add it up in float64."""
    return gram(rows if rows.dtype == torch.float64 else rows.float())
