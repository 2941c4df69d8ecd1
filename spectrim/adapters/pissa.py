"""PiSSA: `W' = W + (L + dL)(R + dR) - L R`, `L = U_r sqrt(S_r)`, `R = sqrt(S_r) V_r^T`.

The r principal terms of the weight train as one LoRA pair from where they are. The start is
that of PEFT's `init_lora_weights="pissa"` with `lora_alpha = r`, and so is every step; but the
change (dL, dR) is stored and W stays as it is, so the base model, other adapters and a
quantized weight are untouched, and the result is a plain LoRA of rank 2 r with no error.
"""

from __future__ import annotations

from spectrim.adapters._spectral import (
    AdaptedWeight,
    Parts,
    TermOptions,
    changed_pair,
    trained_pair,
)

TITLE = "PiSSA"
REFERENCE = "Meng et al., 2024, arXiv:2404.02948"
LEARNING_RATE = 1e-3


Options = TermOptions
pair = changed_pair


def start(weight: AdaptedWeight, options: Options) -> Parts:
    return trained_pair(weight.directions(options.decomposition).first(options.r))
