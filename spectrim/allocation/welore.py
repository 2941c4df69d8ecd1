"""WeLore: one threshold on min-max normalized singular values, the same for every layer.

    (s_i - s_min) / (s_max - s_min) > threshold   is kept

The spectrum is the method's: plain singular values with `svd`, whitened ones otherwise.
A layer that would keep more than `1 - minimum` of its full rank is left dense. Lowering the
threshold only ever adds ranks, so walking it down over the sorted values finds the lowest
that meets the budget; the remainder is spent on the next values that fit. A flat spectrum
has no tail: all its values count as 1 (as 0 when they are all zero).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from spectrim.allocation._greedy import Floats, climb
from spectrim.allocation._request import AllocationRequest, LayerCurve, RankChoices

REQUIRES: tuple[str, ...] = ()
REFERENCE = "Jaiswal et al., 2024, arXiv:2407.11239"


@dataclass(frozen=True)
class Options:
    """Options of WeLore; minimum: the least reduction of a layer, a fraction of its full
    rank.
    """

    minimum: Annotated[float, Field(ge=0, lt=1)] = 0.5


def allocate(request: AllocationRequest, options: Options) -> dict[str, int | None]:
    choices = [_reduced(request.choices(c), c, options.minimum) for c in request.curves]
    keys = [-_thresholds(c, curve) for c, curve in zip(choices, request.curves, strict=True)]
    return climb(request, choices, keys)


def _reduced(choices: RankChoices, curve: LayerCurve, minimum: float) -> RankChoices:
    """Return the choices without ranks that reduce too little; the cheapest always stays."""
    kept = choices.ranks <= (1 - minimum) * min(curve.shape)
    kept[0] = True
    return replace(
        choices,
        ranks=choices.ranks[kept],
        costs=choices.costs[kept],
        losses=choices.losses[kept],
    )


def _thresholds(choices: RankChoices, curve: LayerCurve) -> Floats:
    """Return per step the threshold below which it is taken: the last value that it would keep.

    For the step to dense it is the first value that the layer's largest rank would drop.
    """
    values = min_max_scale(curve.spectrum)
    steps = choices.ranks[1:]
    last = np.where(steps > 0, steps - 1, choices.ranks[max(len(steps) - 1, 0)])
    return values[np.minimum(last, len(values) - 1)]


def min_max_scale(spectrum: Floats) -> Floats:
    """Scale values to [0, 1], descending."""
    least, most = spectrum.min(), spectrum.max()
    if most > least:
        return (spectrum - least) / (most - least)
    return np.full_like(spectrum, 1.0 if most > 0 else 0.0)
