"""MiLoRA: `W' = W + (L + dL)(R + dR) - L R`, L and R from the r smallest singular values.

The minor terms train as one LoRA pair and the principal ones, which hold most of what the
model knows, are left alone. PiSSA's algebra with the other end of the spectrum; the result is
a plain LoRA of rank 2 r with no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.adapters._spectral import (
    AdaptedWeight,
    Pair,
    Parts,
    Tensors,
    changed_pair,
    check_counts,
    trained_pair,
)

TITLE = "MiLoRA"
REFERENCE = "Wang et al., 2024, arXiv:2406.09044"
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Options:
    """r: terms that train, at most the full rank. decomposition: what orders the terms."""

    r: int = 8
    decomposition: str = "svd"

    def __post_init__(self) -> None:
        check_counts(r=self.r)


def start(weight: AdaptedWeight, options: Options) -> Parts:
    terms = weight.directions(options.decomposition)
    return trained_pair(terms.rest(max(0, weight.full_rank - options.r)))


def pair(tensors: Tensors, options: Any) -> Pair:
    return changed_pair(tensors)
