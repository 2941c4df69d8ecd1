"""SLTrain: plain factors and a few free entries, `y = left(right(x)) + S x`.

S (out, in) has s non-zeros in every row, s = 3% of the inputs: values (out, s) and their
columns (out, s), of 16 bits each up to 32,767 inputs:

    r (out + in) + 2 s out

weights. `rank` is that of the factors; W_hat itself may have full rank, which plain factors of
the same size cannot. S is expanded to multiply, once more in the backward pass: the kind
saves memory, not time. Neither W_hat nor its gradient is kept between the passes.

Made from factors it holds them exactly, with S = 0 on random places, as training from scratch
begins (`spectrim train --method sltrain`). Made from a decomposition, S takes the entries of
largest size that the cut leaves out (or random ones, `places`), so predicted losses, those of
the factors alone, are upper bounds for an identity metric only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectrim.layers._base import FactoredLinear, double, linear
from spectrim.linalg.truncated import Factors

REFERENCE = "Han et al., 2024, arXiv:2406.02214"
DENSITY = 0.03
_MOST_INPUTS = torch.iinfo(torch.int16).max


@dataclass(frozen=True)
class Options:
    """places: the largest entries of what the factors leave out, or random ones, by `seed`."""

    places: Literal["largest", "random"] = "largest"
    seed: int = 0


class SparsePlusLowRankLinear(FactoredLinear):
    """Children `right` (in -> r) and `left` (r -> out); `values` and `columns` (out, s)."""

    LOSSLESS = False
    TWO_STEPS = False
    columns: Tensor

    def __init__(self, right: nn.Linear, left: nn.Linear, values: Tensor, columns: Tensor):
        super().__init__(right.in_features, left.out_features, right.out_features)
        self.right = right
        self.left = left
        self.values = nn.Parameter(values)
        self.register_buffer("columns", columns)

    @classmethod
    def cost(cls, out_features: int, in_features: int, rank: int) -> int:
        words = 1 if in_features <= _MOST_INPUTS else 2
        free = out_features * nonzeros_of(in_features)
        return rank * (out_features + in_features) + free * (1 + words)

    @classmethod
    def from_factors(
        cls, left: Tensor, right: Tensor, bias: Tensor | None
    ) -> SparsePlusLowRankLinear:
        columns = random_columns((len(left), right.shape[1]), 0)
        values = torch.zeros(columns.shape, dtype=torch.float64)
        return cls.of((left, right), bias, values, columns)

    @classmethod
    def from_full(
        cls, factors: Factors, rank: int, bias: Tensor | None, options: Any
    ) -> SparsePlusLowRankLinear:
        left, right = factors.left.double(), factors.right.double()
        rest = left[:, rank:] @ right[rank:]
        if options.places == "largest":
            most = rest.abs().topk(nonzeros_of(rest.shape[1]), dim=1).indices
            columns = most.sort(1).values.to(_index_type(rest.shape[1]))
        else:
            columns = random_columns((rest.shape[0], rest.shape[1]), options.seed)
        values = rest.gather(1, columns.long().to(rest.device))
        return cls.of(factors.truncated(rank), factors.bias(rank, bias), values, columns)

    @classmethod
    def of(
        cls,
        factors: tuple[Tensor, Tensor],
        bias: Tensor | None,
        values: Tensor,
        columns: Tensor,
    ) -> SparsePlusLowRankLinear:
        """Return the layer of left (out, r), right (r, in) and sparse entries, in float64."""
        left, right = (factor.double() for factor in factors)
        sizes = left.norm(), right.norm()
        scale = (sizes[1] / sizes[0]).sqrt() if min(sizes) > 0 else 1.0
        children = linear(right / scale, None), linear(left * scale, double(bias))
        return cls(*children, values.to(left), columns.to(left.device))

    @classmethod
    def empty(cls, shape: tuple[int, int], rank: int, bias: bool) -> SparsePlusLowRankLinear:
        out_features, in_features = shape
        places = out_features, nonzeros_of(in_features)
        return cls(
            nn.Linear(in_features, rank, bias=False),
            nn.Linear(rank, out_features, bias=bias),
            torch.empty(places),
            torch.zeros(places, dtype=_index_type(in_features)),
        )

    @property
    def first(self) -> nn.Linear:
        return self.right

    def finish(self, z: Tensor) -> Tensor:
        """Return the factors' share of the output."""
        return self.left(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.right(x)) + SparseProduct.apply(x, self.values, self.columns)

    def validate(self) -> str | None:
        if self.columns.is_meta:
            return None
        columns = self.columns.long()
        if bool((columns < 0).any() or (columns >= self.in_features).any()):
            return f"columns holds places outside the {self.in_features} inputs"
        if bool((columns.diff(dim=1) <= 0).any()):
            return "columns names a place twice, or out of order, in some row"
        return None

    def dense(self) -> tuple[Tensor, Tensor | None]:
        weight = self.left.weight.detach().double() @ self.right.weight.detach().double()
        values = self.values.detach().double()
        return weight.scatter_add(1, self.columns.long(), values), double(self.left.bias)


class SparseProduct(torch.autograd.Function):
    """`x S^T`; S (out, in) is expanded anew in the backward pass, and only x is kept."""

    @staticmethod
    def forward(x: Tensor, values: Tensor, columns: Tensor) -> Tensor:
        return nn.functional.linear(x, expand(values, columns, x.shape[-1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, values, columns = ctx.saved_tensors
        sparse = expand(values, columns, x.shape[-1]).to(gradient.dtype)
        whole = gradient.flatten(0, -2).T @ x.flatten(0, -2).to(gradient.dtype)
        return (
            (gradient @ sparse).to(x.dtype),
            whole.gather(1, columns.long()).to(values.dtype),
            None,
        )


def expand(values: Tensor, columns: Tensor, in_features: int) -> Tensor:
    """Return S (out, in) of values and columns (out, s)."""
    empty = values.new_zeros(len(values), in_features)
    return empty.scatter(1, columns.long(), values)


def nonzeros_of(in_features: int) -> int:
    """Return the non-zeros in a row of S."""
    return max(1, round(DENSITY * in_features))


def random_columns(shape: tuple[int, int], seed: int) -> Tensor:
    """Return ascending places (out, s), all subsets of a row equally likely."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(shape, generator=generator).topk(nonzeros_of(shape[1]), dim=1).indices
    return drawn.sort(1).values.to(_index_type(shape[1]))


def _index_type(in_features: int) -> torch.dtype:
    return torch.int16 if in_features <= _MOST_INPUTS else torch.int32


LAYER = SparsePlusLowRankLinear
