"""MiLoRA: `W' = W + (L + dL)(R + dR) - L R`, L and R from the r smallest singular values.

The minor terms train as one LoRA pair and the principal ones, which hold most of what the
model knows, are left alone. PiSSA's algebra with the other end of the spectrum; the result is
a plain LoRA of rank 2 r with no error.
"""

from __future__ import annotations

from spectrim.adapters._spectral import (
    AdaptedWeight,
    Parts,
    TermOptions,
    changed_pair,
    trained_pair,
)

TITLE = "MiLoRA"
REFERENCE = "Wang et al., 2024, arXiv:2406.09044"
LEARNING_RATE = 3e-3


Options = TermOptions
pair = changed_pair


def start(weight: AdaptedWeight, options: Options) -> Parts:
    terms = weight.directions(options.decomposition)
    return trained_pair(terms.rest(max(0, weight.full_rank - options.r)))
