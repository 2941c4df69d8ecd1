"""The input of a statistic: one batch at one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectrim.linalg.symmetric_products import gram


@dataclass(frozen=True)
class LayerTokens:
    """The real (unpadded) tokens of a batch at one layer.

    x (n, in) inputs, y (n, out) outputs, g (n, out) gradients of the summed token loss at
    the output or None, sequence (n,) the index of each token's sequence in the data set.
    weight (n,) of each token in all sums, None where all count once: sums of rows take
    `weighted`, sums of products of a row with itself `root_weighted`.
    projections() what the layer's weight W makes of them: W x (n, out), and where g is there
    W^T g (n, in). Where g is there and all that read it declare GRADIENT_ONLY, x and y are
    empty, so that nothing has to be kept for them.
    """

    x: Tensor
    y: Tensor
    g: Tensor | None
    sequence: Tensor
    projections: Callable[[], Tensor] | None = None
    weight: Tensor | None = None

    @property
    def count(self) -> float:
        """Return the sum of the weights: the number of tokens where all count once."""
        return self.x.shape[0] if self.weight is None else float(self.weight.double().sum())

    def weighted(self, rows: Tensor) -> Tensor:
        """Return `w_t r_t` (n, d)."""
        return rows if self.weight is None else rows * self.weight[:, None].to(rows)

    def root_weighted(self, rows: Tensor) -> Tensor:
        """Return `sqrt(w_t) r_t` (n, d), whose sum of outer products is weighted."""
        return rows if self.weight is None else rows * self.weight.sqrt()[:, None].to(rows)

    @cached_property
    def gradient(self) -> Tensor:
        assert self.g is not None, "this statistic declares NEEDS_GRADIENT"
        return self.g

    def projected(self) -> Tensor:
        """Return what the weight makes of the tokens, root-weighted."""
        assert self.projections is not None, "whoever keeps sums in this form gives projections"
        return self.root_weighted(self.projections())


def sum_of_outer_products(rows: Tensor) -> Tensor:
    """Return `sum_t r_t r_t^T`, (d, d), in float32 or better; states add it up in float64."""
    return gram(at_least_float32(rows))


def at_least_float32(rows: Tensor) -> Tensor:
    """Cast to the precision of sums over a batch: at least float32."""
    return rows if rows.dtype == torch.float64 else rows.float()
