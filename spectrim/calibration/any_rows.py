"""The real rows of layers that see batches of other shapes than (B, T).

A layer may see positions of either side of a model, patches, or whole examples. Its side is
told by the number of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.models.capture import BatchIndex

_BY_SEQUENCE = ("row_fisher", "weight_gradients")
"""Statistics that need to know which row belongs to which example."""


@dataclass(frozen=True)
class AnyRows(BatchIndex):
    """Rows of a layer's input; a mask is of layers that see one row per position of it."""

    masks: tuple[Tensor, ...] = ()

    @classmethod
    def masked(cls, masks: Tensor | Sequence[Tensor]) -> AnyRows:
        """Return the index of a batch with masks (B, T), of other T each."""
        given = (masks,) if isinstance(masks, Tensor) else tuple(masks)
        flat = tuple(mask.bool().flatten() for mask in given)
        return cls(None, torch.empty(0), masks=flat)

    def select(self, rows: Tensor | None) -> BatchIndex:
        """Return the index of rows routed to an expert; of several sides without masks."""
        if rows is None or not self.masks:
            return self
        masks = self.masks if len(self.masks) == 1 else ()
        return AnyRows(None, self.sequence, masks=tuple(mask[rows] for mask in masks))

    def real(self, values: Tensor) -> Tensor:
        flat = values.detach().flatten(0, -2) if values.dim() > 1 else values.detach()[None]
        mask = next((mask for mask in self.masks if len(mask) == len(flat)), None)
        return flat if mask is None else flat[mask]

    @property
    def real_sequence(self) -> Tensor:
        return self.sequence


def check_statistics(names: Sequence[str]) -> None:
    """Raise InputError for statistics that need sequences."""
    if needy := sorted(set(names) & set(_BY_SEQUENCE)):
        raise InputError(
            f"{', '.join(needy)} is summed by sequence, which only causal language models "
            "have; choose another method"
        )
