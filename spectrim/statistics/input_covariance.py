"""Input covariance `C_x = E[x x^T]`, uncentered, per token.

(in, in) in float64, `in^2` numbers for each different input tensor: layers that read the same
one (q, k and v; gate and up) share it. No backward pass.
"""

from __future__ import annotations

from torch import Tensor

from spectrim.linalg.covariance import Covariance
from spectrim.statistics import _covariance
from spectrim.statistics._covariance import FULL, CovarianceFormat
from spectrim.statistics._tokens import LayerTokens

SIDE = "input"
NEEDS_GRADIENT = False
REFERENCE = "Wang et al., 2024, arXiv:2403.07378"


def width(shape: tuple[int, int]) -> int:
    return shape[1]


def empty(shape: tuple[int, int], form: CovarianceFormat = FULL) -> dict[str, Tensor]:
    return _covariance.empty(width(shape), form)


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    _covariance.update(state, tokens.root_weighted(tokens.x), tokens.projected)


def finish(state: dict[str, Tensor], count: float) -> Tensor | Covariance:
    """Return C_x (in, in)."""
    return _covariance.finish(state, count)
