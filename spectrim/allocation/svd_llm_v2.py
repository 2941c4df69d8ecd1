"""SVD-LLM V2: within a type of matrix, more is removed where truncation loses less.

    removed_i = n R l_i / sum_j l_j,   l_i = 1 / log(L_i),   j over the n layers of the type

R is the removed fraction asked for, L_i the truncation loss `(sum_{j>r} s_j^2)^(1/2)` at the
rank r of that fraction, from the whitened spectrum and summed over `tokens` (the paper's
unit; statistics here are per token).

The logarithm must be positive, and the formula depends on the unit of L: when the smallest
loss of a type is below e, the losses of that type are expressed in the unit that makes it
e, so its l is 1. Losses below 1e-12 of the type's largest count as that; a type without any
loss is removed evenly. Fractions above 1 are cut there and the rest of the model makes up
for it in proportion to what it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from spectrim.allocation._greedy import Floats, proportional, types_of
from spectrim.allocation._request import AllocationRequest, LayerCurve, RankChoices

REQUIRES: tuple[str, ...] = ()
REFERENCE = "Wang et al., 2025, arXiv:2503.12340"
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Options:
    """Options of SVD-LLM V2; tokens: the losses are summed over (256 x 2048 in the paper)."""

    tokens: Annotated[int, Field(ge=1)] = 256 * 2048


def allocate(request: AllocationRequest, options: Options) -> dict[str, int | None]:
    choices = [request.choices(curve) for curve in request.curves]
    pairs = zip(request.curves, choices, strict=True)
    losses = np.array([_truncation_loss(c, choice, request.budget) for c, choice in pairs])
    dense = np.array([curve.dense_cost for curve in request.curves])
    kept = np.zeros(len(dense))
    for members in types_of(request.curves):
        typed = losses[members] * options.tokens**0.5
        kept[members] = 1 - removed_fractions(typed, 1 - request.budget)
    return proportional(request, choices, kept * dense)


def removed_fractions(losses: Floats, removed: float) -> Floats:
    """Return the fractions of the layers of one type, averaging `removed` if none is cut at
    1.
    """
    if losses.max() == 0:
        return np.full(len(losses), removed)
    losses = np.maximum(losses, _SMALLEST * losses.max())
    unit = max(1.0, np.e / losses.min())
    shares = 1 / np.log(losses * unit)
    return np.minimum(len(losses) * removed * shares / shares.sum(), 1.0)


def _truncation_loss(curve: LayerCurve, choices: RankChoices, budget: float) -> float:
    """Return the loss at the most expensive choice within the layer's share, 0 if it is
    dense.
    """
    within = np.searchsorted(choices.costs, budget * curve.dense_cost + 1e-9, side="right")
    rank = int(choices.ranks[max(int(within) - 1, 0)])
    return float(np.sqrt((curve.spectrum[rank:] ** 2).sum())) if rank else 0.0
