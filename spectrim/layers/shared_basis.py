"""Basis Sharing: `y_k = left_k(right(x_k))`, one right factor for several layers.

`r (in + sum_k out_k)` weights in place of `r sum_k (in + out_k)`.

`right` is an `nn.Linear` (in -> r) of the first layer of a group, its owner; each layer has its
own `left` (r -> out_k) with its bias. The others reach `right` through the owner, so that a
state dict, an optimizer and a checkpoint hold it once, and an adapter on it serves all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectrim.layers._base import FactoredLinear, double, linear

REFERENCE = "Wang et al., 2024, arXiv:2410.03765"
COMMAND = (
    "spectrim compress MODEL -o OUT --data TEXT --layer shared_basis "
    "--set sharing.rule=adjacent"
)


class SharedBasisLinear(FactoredLinear):
    """A layer on a shared basis.

    `basis`: the `right` of an owner, or the owner that shares its basis with this layer.
    """

    right: nn.Linear

    def __init__(self, basis: nn.Linear | SharedBasisLinear, left: nn.Linear):
        right = basis if isinstance(basis, nn.Linear) else basis.owner.right
        super().__init__(right.in_features, left.out_features, right.out_features)
        # in a tuple, where neither `state_dict` nor `parameters` finds it a second time
        self._owner = () if isinstance(basis, nn.Linear) else (basis.owner,)
        if isinstance(basis, nn.Linear):
            self.right = basis
        self.left = left

    @property
    def owner(self) -> SharedBasisLinear:
        """Return the layer that holds `right`: this one, or the first of its group."""
        return self._owner[0] if self._owner else self

    @classmethod
    def matrices(
        cls, out_features: int, in_features: int, rank: int
    ) -> tuple[tuple[int, int], ...]:
        return ((rank, in_features), (out_features, rank))

    @classmethod
    def from_factors(
        cls, left: Tensor, right: Tensor, bias: Tensor | None
    ) -> SharedBasisLinear:
        return shared_layers([left], right, [bias])[0]

    @classmethod
    def empty(cls, shape: tuple[int, int], rank: int, bias: bool) -> SharedBasisLinear:
        out_features, in_features = shape
        return cls(
            nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=bias)
        )

    def empty_member(self, out_features: int, bias: bool) -> SharedBasisLinear:
        """Return an uninitialized layer on this one's basis."""
        return type(self)(self, nn.Linear(self.rank, out_features, bias=bias))

    @property
    def first(self) -> nn.Linear:
        return self.owner.right

    def finish(self, z: Tensor) -> Tensor:
        return self.left(z)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        basis = self.owner.right.weight.detach().double().to(self.left.weight.device)
        return self.left.weight.detach().double() @ basis, double(self.left.bias)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", basis of another layer" if self._owner else "")


def shared_layers(
    lefts: Sequence[Tensor], right: Tensor, biases: Sequence[Tensor | None]
) -> list[SharedBasisLinear]:
    """Return float64 layers on one basis, owner first: lefts (out_k, r), right (r, in)."""
    right = right.double()
    sizes = torch.stack([left.double().norm() for left in lefts]).norm(), right.norm()
    scale = (sizes[1] / sizes[0]).sqrt() if min(sizes) > 0 else 1.0
    layers: list[SharedBasisLinear] = []
    for left, bias in zip(lefts, biases, strict=True):
        basis = layers[0] if layers else linear(right / scale, None)
        layers.append(SharedBasisLinear(basis, linear(left.double() * scale, double(bias))))
    return layers


LAYER = SharedBasisLinear
