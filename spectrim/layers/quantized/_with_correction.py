"""A compressed layer with a low-rank path beside it: `y = Q(W) x + b + left(right(x))`.

    R = W - Q(W),   min_{rank r} || L_out^T (R - left right) L_in ||

The path is the truncated decomposition of the compressor's error, in the metric of any
method; by Eckart-Young the weighted error falls from `sum_i s_i^2` to `sum_{i>r} s_i^2`, so a
path never increases it (EoRA, arXiv:2410.21271, with C_x; arXiv:2604.00821 with C_g too).
"""

from __future__ import annotations

from torch import Tensor, nn

from spectrim.layers._base import CompactLinear
from spectrim.layers.lowrank import LowRankLinear
from spectrim.layers.quantized._base import CompressedLinear


class CompensatedLinear(CompactLinear):
    """Children `base`, which holds the bias, and at a rank above 0 `right` and `left`."""

    def __init__(self, base: CompressedLinear, right: nn.Linear | None, left: nn.Linear | None):
        rank = 0 if right is None else right.out_features
        super().__init__(base.in_features, base.out_features, rank)
        self.base = base
        self.right = right
        self.left = left

    @classmethod
    def from_factors(
        cls, base: CompressedLinear, left: Tensor, right: Tensor
    ) -> CompensatedLinear:
        """Return the layer for left (out, r) and right (r, in); r may be 0."""
        if left.shape[1] == 0:
            return cls(base, None, None)
        path = LowRankLinear.from_factors(left, right, None)
        return cls(base, path.right, path.left)

    @classmethod
    def empty_path(cls, base: CompressedLinear, rank: int) -> CompensatedLinear:
        """Return an uninitialized path beside `base`, to be filled by a loader."""
        if rank == 0:
            return cls(base, None, None)
        right = nn.Linear(base.in_features, rank, bias=False)
        return cls(base, right, nn.Linear(rank, base.out_features, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.right is None or self.left is None:
            return y
        return y + self.left(self.right(x))

    def validate(self) -> str | None:
        fault = self.base.validate()
        return fault and f"base.{fault}"

    def dense(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.base.dense()
        if self.right is not None and self.left is not None:
            left, right = self.left.weight.detach(), self.right.weight.detach()
            weight = weight + left.double() @ right.double()
        return weight, bias
