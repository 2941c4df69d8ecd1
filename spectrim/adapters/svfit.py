"""SVFit: `W' = W + U_r diag(s * t) V_r^T`, only the r numbers t train.

Each t_i scales one term of the weight, relative to its singular value, so that one learning
rate fits all layers; t = 0 is the base and `t_i = -1` removes the term. With another `core`,
SVFT,

    W' = W + U_r sqrt(S_r) M sqrt(S_r) V_r^T,   M sparse or full,

entries off the diagonal train too, and directions mix. The result is a plain LoRA of rank r
with no error; with all singular values that is the full rank, and a truncation or a merged
model is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spectrim.adapters._spectral import AdaptedWeight, Pair, Parts, Tensors, check_counts
from spectrim.errors import InputError

TITLE = "SVFit"
REFERENCE = (
    "Sun et al., 2024, arXiv:2409.05926; the core of Lingam et al., 2024, arXiv:2405.19597"
)
LEARNING_RATE = 3e-2


@dataclass(frozen=True)
class Options:
    """r: terms that train, None: all. part: the largest or the smallest of them.

    core: entries of M that train: `diagonal`, `band` (width `band` on either side), `random`
    (diagonal and a share `density` of the others, drawn from `seed`), or `full`.
    """

    r: int | None = None
    part: Literal["principal", "minor"] = "principal"
    core: Literal["diagonal", "band", "random", "full"] = "diagonal"
    band: int = 1
    density: float = 0.01
    seed: int = 0
    decomposition: str = "svd"

    def __post_init__(self) -> None:
        check_counts(r=1 if self.r is None else self.r, band=self.band, density=self.density)
        if self.density > 1:
            raise InputError(f"density is {self.density}, expected a share of at most 1")


def start(weight: AdaptedWeight, options: Options) -> Parts:
    terms = weight.directions(options.decomposition)
    count = min(options.r or weight.full_rank, weight.full_rank)
    if options.part == "minor":
        terms = terms.rest(weight.full_rank - count)
    left, right = terms.first(count).scaled()
    fixed = {"left": left, "right": right}
    size = count
    if options.core != "diagonal":
        fixed["places"] = _places(count, options)
        size = len(fixed["places"])
    return Parts({"core": left.new_zeros(size)}, fixed)


def pair(tensors: Tensors, options: Options) -> Pair:
    left, right, core = tensors["left"], tensors["right"], tensors["core"]
    if "places" not in tensors:
        return left * core, right
    rank = left.shape[1]
    mixing = core.new_zeros(rank * rank).index_put((tensors["places"],), core)
    return left @ mixing.view(rank, rank), right


def _places(count: int, options: Options) -> Tensor:
    """Return the flat indices of the entries of M (count, count) that train."""
    distance = (torch.arange(count)[:, None] - torch.arange(count)).abs()
    if options.core == "band":
        chosen = distance <= options.band
    elif options.core == "random":
        generator = torch.Generator().manual_seed(options.seed)
        drawn = torch.rand(count, count, generator=generator) < options.density
        chosen = drawn | (distance == 0)
    else:
        chosen = distance >= 0
    return chosen.flatten().nonzero().flatten()
