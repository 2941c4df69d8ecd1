"""Statistics of an embedding table, which is a linear layer on one-hot inputs.

lookup    counts of each row (V,),  C_g = E[g g^T] (d, d) at its output
output    C_h = E[h h^T] (d, d) of the last hidden state,  q = E[pi (1 - pi)] (V,), pi the
          predictions: the head's input, and the diagonal of the Fisher matrix of its logits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

TableSums = dict[str, Tensor]
"""Sums over tokens by the names of the fields of `TableStatistics`, float64."""


@dataclass(frozen=True)
class TableStatistics:
    """Counts of the tokens, and the other statistics per token where they were summed."""

    counts: Tensor
    gradients: Tensor | None = None
    head_inputs: Tensor | None = None
    head_fisher: Tensor | None = None

    @classmethod
    def from_sums(cls, sums: Mapping[str, Tensor]) -> TableStatistics:
        """Divide all sums but the counts by the number of tokens."""
        tokens = sums["counts"].sum().clamp_min(1)
        rest = {name: value / tokens for name, value in sums.items() if name != "counts"}
        return cls(sums["counts"], **rest)
