"""W = U diag(s) V^T, and which part of it trains: what all spectral adapters share.

    W' = W + B A,   B (out, k),  A (k, in),   B A = 0 at the first step

B and A are functions of trained tensors, which begin at zero or beside a zero, and of fixed
ones, which come from a decomposition of W (out, in). W itself is not changed, so an adapter may
be switched off, several share one base, a quantized base stays as it is, and (B, A) is at any
time a LoRA pair that equals the adapter.

Singular vectors are unique up to the sign of each pair (u_i, v_i); here the entry of u_i that
is largest in magnitude is positive, so that what was learned between different i means the
same after another decomposition of the same W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrim.decompositions import DECOMPOSITIONS, decompose_layer
from spectrim.errors import InputError
from spectrim.statistics import LayerProblem, LayerStatistics

Tensors = Mapping[str, Tensor]
Pair = tuple[Tensor, Tensor]
"""B (out, k) and A (k, in)."""


@dataclass(frozen=True)
class Directions:
    """Rank-one terms of a weight, W = sum_i s_i u_i v_i^T, most important first.

    Attributes:
        left: (out, k), columns of norm one; right: (k, in), rows of norm one.
        spectrum: (k,), the weights of the terms.
    """

    left: Tensor
    spectrum: Tensor
    right: Tensor

    def first(self, count: int) -> Directions:
        return Directions(self.left[:, :count], self.spectrum[:count], self.right[:count])

    def rest(self, count: int) -> Directions:
        """Return the terms after the first `count`."""
        return Directions(self.left[:, count:], self.spectrum[count:], self.right[count:])

    def scaled(self) -> Pair:
        """Return `U sqrt(S)` and `sqrt(S) V^T`."""
        root = self.spectrum.sqrt()
        return self.left * root, root[:, None] * self.right


@dataclass(frozen=True)
class Parts:
    """The tensors of an adapter by name, those that train and those that are fixed."""

    trained: dict[str, Tensor]
    fixed: dict[str, Tensor]


@dataclass(frozen=True)
class AdaptedWeight:
    """A weight (out, in) in float64 that gets an adapter.

    Attributes:
        statistics: of the layer, for decompositions that require some.
        stored: the fixed tensors will be read from a file; their values do not matter now.
    """

    name: str
    weight: Tensor
    statistics: LayerStatistics | None = None
    stored: bool = False

    @property
    def full_rank(self) -> int:
        return min(self.weight.shape)

    def directions(self, decomposition: str = "svd") -> Directions:
        """Return all terms by a decomposition. Raises InputError without its statistics."""
        if self.stored:
            rows, columns = self.weight.shape
            unknown = self.weight.new_full((self.full_rank,), torch.nan)
            return Directions(
                unknown.expand(rows, -1), unknown, unknown[:, None].expand(-1, columns)
            )
        if decomposition == "svd":
            return _signed(*torch.linalg.svd(self.weight, full_matrices=False))
        if DECOMPOSITIONS.get(decomposition).REQUIRES and self.statistics is None:
            raise InputError(
                f"'{decomposition}' needs statistics of {self.name}: give the configuration "
                "to spectrim.adapters.with_statistics(config, model, blocks) first"
            )
        problem = LayerProblem(self.name, self.weight, None, self.statistics)
        options = DECOMPOSITIONS.options(decomposition)
        factors = decompose_layer(decomposition, problem, options)
        columns, rows = factors.left.norm(dim=0), factors.right.norm(dim=1)
        tiny = torch.finfo(self.weight.dtype).tiny
        left, right = (
            factors.left / columns.clamp(tiny),
            factors.right / rows[:, None].clamp(tiny),
        )
        return _signed(left, columns * rows, right)


def _signed(left: Tensor, spectrum: Tensor, right: Tensor) -> Directions:
    largest = left.abs().argmax(0, keepdim=True)
    sign = torch.where(left.gather(0, largest)[0] < 0, -1.0, 1.0).to(left)
    return Directions(left * sign, spectrum, sign[:, None] * right)


def check_counts(**counts: float) -> None:
    """Raise InputError unless all are positive."""
    for name, count in counts.items():
        if not count > 0:
            raise InputError(f"{name} is {count}, expected above 0")


@dataclass(frozen=True)
class TermOptions:
    """r: terms that train, at most the full rank. decomposition: what orders the terms."""

    r: int = 8
    decomposition: str = "svd"

    def __post_init__(self) -> None:
        check_counts(r=self.r)


def trained_pair(terms: Directions) -> Parts:
    """Return the parts of `sum_i s_i u_i v_i^T` (out, in) whose two factors both train."""
    left, right = terms.scaled()
    trained = {"left_change": torch.zeros_like(left), "right_change": torch.zeros_like(right)}
    return Parts(trained, {"left": left, "right": right})


def changed_pair(tensors: Tensors, options: Any = None) -> Pair:
    """Return `(L + dL)(R + dR) - L R` of the parts of `trained_pair`, at twice their rank."""
    left_change, right_change = tensors["left_change"], tensors["right_change"]
    left = torch.cat([left_change, tensors["left"]], 1)
    return left, torch.cat([tensors["right"] + right_change, right_change])


def update_of(method: Any, tensors: Tensors, options: Any) -> Tensor:
    """Return `W' - W` (out, in) of a method by its tensors."""
    if hasattr(method, "delta"):
        return method.delta(tensors, options)
    left, right = method.pair(tensors, options)
    return left @ right


def pair_of(method: Any, tensors: Tensors, options: Any) -> Pair:
    """Return a pair whose product is the update, of smallest rank where it has none itself."""
    if not hasattr(method, "delta"):
        return method.pair(tensors, options)
    left, spectrum, right = torch.linalg.svd(
        method.delta(tensors, options), full_matrices=False
    )
    rank = max(1, int((spectrum > spectrum[0] * torch.finfo(spectrum.dtype).eps).sum()))
    return left[:, :rank] * spectrum[:rank], right[:rank]


def truncated_pair(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the best pair of at most `rank` for `left right`, and its squared error.

    It costs O((out + in) k^2): the SVD is taken of the (k, k) core between two QR factors.
    """
    outer, upper = torch.linalg.qr(left)
    inner, lower = torch.linalg.qr(right.T)
    core, spectrum, turned = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    dropped = float(spectrum[rank:].square().sum())
    return (
        outer @ core[:, :rank] * spectrum[:rank],
        turned[:rank] @ inner.T,
        dropped,
    )
