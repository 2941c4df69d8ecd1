"""What removing experts from a block costs, and which layers are theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertCurve:
    """The predicted loss of removing the first experts of an order from one block.

    Attributes:
        router: name of the module that chooses among them.
        count: experts of the block.
        order: their numbers, the first to go first; not all of them can.
        losses: at 0, 1, ... removed experts, nats per token, never falling.
    """

    router: str
    count: int
    order: tuple[int, ...]
    losses: tuple[float, ...]

    def loss_without(self, removed: Sequence[int]) -> float | None:
        """Return the loss of removing experts, None where these are not the order's first."""
        first = self.order[: len(removed)]
        return self.losses[len(removed)] if set(first) == set(removed) else None


def expert_of(layer: str) -> tuple[str, int] | None:
    """Return the name of the experts and the number of the one that a layer is part of."""
    match = re.fullmatch(r"(.+)\.(?:up|down)\.(\d+)", layer)
    return None if match is None else (match[1], int(match[2]))


def is_left(layer: str, removed: Mapping[str, Sequence[int]]) -> bool:
    """Return whether a layer is there when the experts `removed` by block are gone."""
    place = expert_of(layer)
    return place is None or place[1] not in removed.get(place[0], ())
