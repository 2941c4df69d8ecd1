"""How q, k and v are cut into heads, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Heads:
    """queries: heads of q, each `queries / keys` of which share one of k and v. causal: no
    position sees a later one. scale None: 1 / sqrt(width)."""

    queries: int
    keys: int
    width: int
    causal: bool
    scale: float | None = None

    @property
    def scaling(self) -> float:
        return self.width**-0.5 if self.scale is None else self.scale
