"""Gradient covariance `C_g = E[g g^T]` at the layer's output, uncentered, per token.

g is the gradient of the *summed* token loss. With labels from the data this is the
empirical Fisher's factor, with labels sampled from the model the true Fisher's.
"""

from __future__ import annotations

from torch import Tensor

from spectrim.linalg.covariance import Covariance
from spectrim.statistics import _covariance
from spectrim.statistics._covariance import FULL, CovarianceFormat
from spectrim.statistics._tokens import LayerTokens

SIDE = "layer"
NEEDS_GRADIENT = True
GRADIENT_ONLY = True
REFERENCE = "Li et al., 2026, arXiv:2604.00821"


def width(shape: tuple[int, int]) -> int:
    return shape[0]


def empty(shape: tuple[int, int], form: CovarianceFormat = FULL) -> dict[str, Tensor]:
    return _covariance.empty(width(shape), form)


def update(state: dict[str, Tensor], tokens: LayerTokens) -> None:
    _covariance.update(state, tokens.root_weighted(tokens.gradient), tokens.projected)


def finish(state: dict[str, Tensor], count: float) -> Tensor | Covariance:
    """Return C_g (out, out)."""
    return _covariance.finish(state, count)
