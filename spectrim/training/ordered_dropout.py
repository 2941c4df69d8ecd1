"""Ordered dropout: one layer cut to a random prefix per step, so that every prefix is trained.

    step t:  draw (i, b),   z_i <- z_i[: b] in  y = left_i z_i,  z_i = right_i x

For a linear map and uniform draws the best factors are those of the truncated SVD, for every b
at once. The draws of an epoch are a permutation of all pairs of a layer and a rank. With

    penalty = sum_i sum_b ( ||left_i[:, b:]|| + ||right_i[b:]|| )

columns that are not needed shrink to zero from the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.models.hooks import attach_hooks

_TINY = 1e-12
"""Under the square root, whose derivative at zero is infinite."""


class OrderedDropout:
    """Draws (layer, rank) for each step from its number, so that runs can be resumed."""

    def __init__(self, layers: Mapping[str, LowRankLinear], seed: int):
        if not layers:
            raise ModelError("there is no factored layer whose rank could be drawn")
        self.layers = dict(layers)
        self.seed = seed
        self.pairs = [(n, b) for n, layer in layers.items() for b in range(1, layer.rank + 1)]
        self._epoch: tuple[int, list[int]] = (-1, [])

    def pair(self, step: int) -> tuple[str, int]:
        """Return the layer of a step and the rank that it is cut to."""
        epoch, number = divmod(step, len(self.pairs))
        if epoch != self._epoch[0]:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.pairs), generator=generator).tolist()
            self._epoch = epoch, order
        return self.pairs[self._epoch[1][number]]

    @contextmanager
    def cut(self, step: int) -> Iterator[None]:
        """Cut the layer of a step to its prefix, in every forward pass inside."""
        name, rank = self.pair(step)
        with cut_to({self.layers[name]: rank}):
            yield

    def penalty(self) -> Tensor:
        """Return the sum of the norms of all tails of all factors."""
        tails = [tail for layer in self.layers.values() for tail in tail_norms(layer)]
        return torch.stack([tail.sum() for tail in tails]).sum()


@contextmanager
def cut_to(ranks: Mapping[LowRankLinear, int]) -> Iterator[None]:
    """Let layers compute with the first of their terms, in every forward pass inside."""

    def cutting(rank: int) -> Any:
        def cut(module: nn.Module, args: tuple[Any, ...], z: Tensor) -> Tensor:
            kept = torch.arange(z.shape[-1], device=z.device) < rank
            return torch.where(kept, z, 0.0)

        return cut

    with attach_hooks(after=[(layer.right, cutting(rank)) for layer, rank in ranks.items()]):
        yield


def tail_norms(layer: LowRankLinear) -> tuple[Tensor, Tensor]:
    """Return the norms (r,) of `left[:, b:]` and of `right[b:]`, b from 0."""
    squares = layer.left.weight.square().sum(0), layer.right.weight.square().sum(1)
    left, right = (s.flip(0).cumsum(0).flip(0).add(_TINY).sqrt() for s in squares)
    return left, right


@torch.no_grad()
def needed_rank(layer: LowRankLinear, threshold: float) -> int:
    """Return the first rank whose tail is below `threshold` of the whole, at least 1."""
    left, right = tail_norms(layer)
    importance = left * right / (left[0] * right[0])
    return max(1, int((importance >= threshold).sum()))
