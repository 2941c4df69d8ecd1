"""Effort: `W' = U_h S_h V_h^T + U' S' V'^T`, the principal part fixed, the rest orthogonal.

The r smallest terms train, vectors and values, beside what the model knows:

    U' = U + (I - U_h U_h^T) dU,   V' = V + (I - V_h V_h^T) dV,   S' = S + dS

so `U_h^T (W' - W) = 0` and `(W' - W) V_h = 0` at every step. The displacement itself is
projected: projecting gradients, as OSF does, leaks through Adam's scaling of coordinates.
`project=False` with a `penalty` is the published loss. The result is a plain LoRA of rank 2 r
with no error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.adapters._spectral import AdaptedWeight, Pair, Parts, Tensors, check_counts

TITLE = "Effort"
REFERENCE = "Yan et al., 2024, arXiv:2411.15633; OSF: Nayak et al., 2025, arXiv:2504.07097"
LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class Options:
    """r: terms that train; all others are kept. project: hold the update orthogonal to them."""

    r: int = 8
    project: bool = True

    def __post_init__(self) -> None:
        check_counts(r=self.r)


def start(weight: AdaptedWeight, options: Options) -> Parts:
    terms = weight.directions()
    kept = max(0, weight.full_rank - options.r)
    minor, principal = terms.rest(kept), terms.first(kept)
    trained = {
        "left_change": torch.zeros_like(minor.left),
        "spectrum_change": torch.zeros_like(minor.spectrum),
        "right_change": torch.zeros_like(minor.right),
    }
    fixed = {"left": minor.left, "spectrum": minor.spectrum, "right": minor.right}
    held = {
        "kept_left": principal.left,
        "kept_spectrum": principal.spectrum,
        "kept_right": principal.right,
    }
    return Parts(trained, fixed | held)


def pair(tensors: Tensors, options: Options) -> Pair:
    left_change, right_change = _changes(tensors, options)
    left, spectrum, right = tensors["left"], tensors["spectrum"], tensors["right"]
    change = tensors["spectrum_change"]
    moved = left_change * spectrum + (left + left_change) * change
    return (
        torch.cat([moved, left * spectrum], 1),
        torch.cat([right + right_change, right_change]),
    )


def penalty(tensors: Tensors, options: Options) -> Tensor:
    """Return the published losses: of orthonormality, and of the kept energy.

    1/2 (||U^T U - I||_F + ||V^T V - I||_F) + | ||W'||_F^2 - ||W||_F^2 |
    """
    left_change, right_change = _changes(tensors, options)
    lefts = torch.cat([tensors["kept_left"], tensors["left"] + left_change], 1)
    rights = torch.cat([tensors["kept_right"], tensors["right"] + right_change])
    change = tensors["spectrum"] + tensors["spectrum_change"]
    spectrum = torch.cat([tensors["kept_spectrum"], change])
    before = torch.cat([tensors["kept_spectrum"], tensors["spectrum"]]).square().sum()
    grams = lefts.T @ lefts, rights @ rights.T
    energy = (grams[0] * grams[1] * torch.outer(spectrum, spectrum)).sum()
    identity = torch.eye(len(spectrum)).to(spectrum)
    apart = sum(((gram - identity).norm() for gram in grams), spectrum.new_zeros(()))
    return 0.5 * apart + (energy - before).abs()


def _changes(tensors: Tensors, options: Options) -> Pair:
    left, right = tensors["left_change"], tensors["right_change"]
    if options.project:
        outer, inner = tensors["kept_left"], tensors["kept_right"]
        left = left - outer @ (outer.T @ left)
        right = right - (right @ inner.T) @ inner
    return left, right
