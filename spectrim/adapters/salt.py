"""SALT: `W' = U (Sigma + diag(a s + b, 0) + diag(0, X Y)) V^T`: scales, shifts, a LoRA.

The k largest singular values are scaled and shifted, `s_i -> (1 + a_i) s_i + b_i`; the block of
all others gets X Y of rank r, X (p - k, r), Y (r, p - k), so that minor directions mix. The
result is a plain LoRA of rank k + r with no error. With `relu` the middle matrix passes an
element-wise ReLU, as in the authors' code: entries off the diagonal then have no gradient at
the first step and stay positive, and the update has full rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.adapters._spectral import AdaptedWeight, Pair, Parts, Tensors, check_counts
from spectrim.errors import InputError

TITLE = "SALT"
REFERENCE = "Elsayed et al., 2025, arXiv:2503.16055"
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Options:
    """share: of the singular values that are scaled and shifted; r: rank in the others."""

    share: float = 0.25
    r: int = 8
    relu: bool = False
    decomposition: str = "svd"

    def __post_init__(self) -> None:
        check_counts(r=self.r)
        if not 0 <= self.share <= 1:
            raise InputError(f"share is {self.share}, expected 0 to 1")


def start(weight: AdaptedWeight, options: Options) -> Parts:
    terms = weight.directions(options.decomposition)
    full = weight.full_rank
    count = math.ceil(options.share * full)
    rest = full - count
    like = weight.weight
    block = like.new_empty(rest, options.r)
    if rest:
        torch.nn.init.kaiming_uniform_(block, a=math.sqrt(20))
    trained = {
        "scale": like.new_zeros(count),
        "shift": like.new_zeros(count),
        "block_left": block,
        "block_right": like.new_zeros(options.r, rest),
    }
    fixed = {"left": terms.left, "spectrum": terms.spectrum, "right": terms.right}
    return Parts(trained, fixed)


def pair(tensors: Tensors, options: Options) -> Pair:
    left, right = tensors["left"], tensors["right"]
    count = len(tensors["scale"])
    if options.relu:
        spectrum = torch.diag(tensors["spectrum"])
        changed = spectrum + torch.block_diag(torch.diag(_change(tensors)), _block(tensors))
        return left @ (changed.relu() - spectrum), right
    return (
        torch.cat(
            [left[:, :count] * _change(tensors), left[:, count:] @ tensors["block_left"]], 1
        ),
        torch.cat([right[:count], tensors["block_right"] @ right[count:]]),
    )


def penalty(tensors: Tensors, options: Options) -> Tensor:
    """Return `||a s + b|| + ||X Y||_F`, the authors' regularizer."""
    return _change(tensors).norm() + _block(tensors).norm()


def _change(tensors: Tensors) -> Tensor:
    scale, shift = tensors["scale"], tensors["shift"]
    return scale * tensors["spectrum"][: len(scale)] + shift


def _block(tensors: Tensors) -> Tensor:
    return tensors["block_left"] @ tensors["block_right"]
