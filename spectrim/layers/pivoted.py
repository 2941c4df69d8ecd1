"""Pivoted storage: r rows of the weight itself and coefficients for the others.

    z = W_hat[pivots] x,   y[pivots] = z,   y[others] = C z

`r (out + in - r)` weights instead of `r (out + in)` for the same matrix of rank r, and as many
multiply-adds per token (PIFA, arXiv:2501.19090). `pivot_mask` stores one bit per output; the
gather index is derived from it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.layers._base import FactoredLinear, double, linear
from spectrim.linalg.pivoting import pivot_rows

REFERENCE = "Zhao et al., 2025, arXiv:2501.19090"


class PivotedLinear(FactoredLinear):
    """Children `pivots` (in -> r) and `coefficients` (r -> out - r), each with its bias."""

    pivot_mask: Tensor

    def __init__(self, pivots: nn.Linear, coefficients: nn.Linear, mask: Tensor):
        out_features = pivots.out_features + coefficients.out_features
        super().__init__(pivots.in_features, out_features, pivots.out_features)
        self.pivots = pivots
        self.coefficients = coefficients
        self.register_buffer("pivot_mask", mask)
        self._position: Tensor | None = None

    @classmethod
    def matrices(
        cls, out_features: int, in_features: int, rank: int
    ) -> tuple[tuple[int, int], ...]:
        return ((rank, in_features), (out_features - rank, rank))

    @classmethod
    def from_factors(cls, left: Tensor, right: Tensor, bias: Tensor | None) -> PivotedLinear:
        left, right = left.double(), right.double()
        pivots, coefficients = pivot_rows(left) if left.any() else _pivots_of_zeros(left)
        is_pivot = torch.zeros(left.shape[0], dtype=torch.bool)
        is_pivot[pivots] = True
        pivot_bias = other_bias = None
        if bias is not None:
            pivot_bias = bias.double()[is_pivot]
            other_bias = bias.double()[~is_pivot] - coefficients @ pivot_bias
        return cls(
            linear(left[pivots] @ right, pivot_bias),
            linear(coefficients, other_bias),
            pack_bits(is_pivot),
        )

    @classmethod
    def empty(cls, shape: tuple[int, int], rank: int, bias: bool) -> PivotedLinear:
        out_features, in_features = shape
        return cls(
            nn.Linear(in_features, rank, bias=bias),
            nn.Linear(rank, out_features - rank, bias=bias),
            torch.zeros((out_features + 7) // 8, dtype=torch.uint8),
        )

    @property
    def first(self) -> nn.Linear:
        return self.pivots

    def finish(self, z: Tensor) -> Tensor:
        return torch.cat([z, self.coefficients(z)], dim=-1).index_select(-1, self.position())

    def position(self) -> Tensor:
        """Return the place of each output in `[z, C z]`, shape (out,), cached."""
        cached = self._position
        if cached is not None and cached.device == self.pivot_mask.device:
            return cached
        if torch.compiler.is_compiling():
            return self._derived_position()
        with torch.inference_mode(False):  # a tensor made in it could not be trained with
            position = self._derived_position()
        if not position.is_meta:
            self._position = position
        return position

    def _derived_position(self) -> Tensor:
        is_pivot = unpack_bits(self.pivot_mask, self.out_features)
        return torch.where(
            is_pivot, is_pivot.cumsum(0) - 1, self.rank - 1 + (~is_pivot).cumsum(0)
        )

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._position = None
        super()._load_from_state_dict(*args, **kwargs)

    def validate(self) -> str | None:
        if self.pivot_mask.is_meta:
            return None
        marked = int(unpack_bits(self.pivot_mask, self.out_features).sum())
        if marked == self.rank:
            return None
        return f"pivot_mask marks {marked} outputs, expected its rank, {self.rank}"

    def dense(self) -> tuple[Tensor, Tensor | None]:
        rows = self.pivots.weight.detach().double()
        others = self.coefficients.weight.detach().double() @ rows
        position = self.position()
        weight = torch.cat([rows, others])[position]
        pivot_bias = double(self.pivots.bias)
        if pivot_bias is None:
            return weight, None
        other_bias = self.coefficients.weight.detach().double() @ pivot_bias
        other_bias += self.coefficients.bias.detach().double()
        return weight, torch.cat([pivot_bias, other_bias])[position]


def _pivots_of_zeros(left: Tensor) -> tuple[Tensor, Tensor]:
    rows, rank = left.shape
    return torch.arange(rank), left.new_zeros(rows - rank, rank)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack booleans (n,) into bytes (ceil(n / 8),), lowest bit first."""
    padded = torch.zeros((bits.numel() + 7) // 8 * 8, dtype=torch.uint8)
    padded[: bits.numel()] = bits.to(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return (padded.view(-1, 8) * weights).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """Return the first `count` booleans of `pack_bits`'s result."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & 1).bool().flatten()[:count]


LAYER = PivotedLinear
