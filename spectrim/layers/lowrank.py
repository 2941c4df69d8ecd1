"""Plain factors: `y = left(right(x))`, r (out + in) weights.

`right` is an `nn.Linear` (in -> r) without bias, `left` an `nn.Linear` (r -> out) with the
bias of the layer it replaces.
"""

from __future__ import annotations

from torch import Tensor, nn

from spectrim.layers._base import FactoredLinear, double, linear

REFERENCE = "the common form of all low-rank methods"


class LowRankLinear(FactoredLinear):
    def __init__(self, right: nn.Linear, left: nn.Linear):
        super().__init__(right.in_features, left.out_features, right.out_features)
        self.right = right
        self.left = left

    @classmethod
    def matrices(
        cls, out_features: int, in_features: int, rank: int
    ) -> tuple[tuple[int, int], ...]:
        return ((rank, in_features), (out_features, rank))

    @classmethod
    def from_factors(cls, left: Tensor, right: Tensor, bias: Tensor | None) -> LowRankLinear:
        left, right = left.double(), right.double()
        sizes = left.norm(), right.norm()
        scale = (sizes[1] / sizes[0]).sqrt() if min(sizes) > 0 else 1.0
        return cls(linear(right / scale, None), linear(left * scale, double(bias)))

    @classmethod
    def empty(cls, shape: tuple[int, int], rank: int, bias: bool) -> LowRankLinear:
        out_features, in_features = shape
        return cls(
            nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=bias)
        )

    @property
    def first(self) -> nn.Linear:
        return self.right

    def finish(self, z: Tensor) -> Tensor:
        return self.left(z)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        weight = self.left.weight.detach().double() @ self.right.weight.detach().double()
        return weight, double(self.left.bias)


LAYER = LowRankLinear
