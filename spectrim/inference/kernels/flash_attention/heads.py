"""The heads of q, k and v, and the causal mask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Heads:
    """The heads of an attention.

    queries: heads of q; `queries / keys` of them share one of k and v. causal: no position
    sees a later one. scale None: 1 / sqrt(width).
    """

    queries: int
    keys: int
    width: int
    causal: bool
    scale: float | None = None

    @property
    def scaling(self) -> float:
        return self.width**-0.5 if self.scale is None else self.scale
