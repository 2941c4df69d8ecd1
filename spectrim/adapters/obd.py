"""OBD: `W' = W + (L + dL)(R + dR) - L R`, L R the terms that cost the loss most, or least.

    W = sum_i s_i u_i v_i^T,   ordered by  || L_out^T (s_i u_i v_i^T) L_in ||,
    C_g = L_out L_out^T,  C_x = L_in L_in^T

Half the square of a term's size is the loss that its removal is predicted to cost, so
`principal` trains the directions that the data use most and `residual` those that they hardly
use. PiSSA and MiLoRA are the same with identity covariances. The terms are stored with the
adapter, since they come from calibration; the result is a plain LoRA of rank 2 r with no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spectrim.adapters._spectral import (
    AdaptedWeight,
    Parts,
    changed_pair,
    check_counts,
    trained_pair,
)

TITLE = "OBD"
REQUIRES = ("input_covariance", "gradient_covariance")
REFERENCE = "the metric of Li et al., 2026, arXiv:2604.00821"
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Options:
    """r: terms that train, at most the full rank. part: which end of the order trains."""

    r: int = 8
    part: Literal["principal", "residual"] = "principal"
    decomposition: str = "obd"

    def __post_init__(self) -> None:
        check_counts(r=self.r)


pair = changed_pair


def start(weight: AdaptedWeight, options: Options) -> Parts:
    terms = weight.directions(options.decomposition)
    if options.part == "principal":
        return trained_pair(terms.first(options.r))
    return trained_pair(terms.rest(max(0, weight.full_rank - options.r)))
