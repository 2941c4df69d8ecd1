"""D-Rank: within a type of matrix, ranks in proportion to the root of the effective rank.

    R = exp(entropy(s^2 / sum s^2)),   min sum_l R_l / k_l  at fixed  sum_l w_l k_l
    =>  R_l / (w_l k_l^2) equal for all l,   k_l = t sqrt(R_l / w_l)

w is the cost of one rank; every type (see `types_of`) gets the same share of its weights,
and t meets it in stored weights, a layer that reaches its dense cost staying dense.

The paper then moves a fraction beta from queries and keys to the values. The role of a layer
follows only from its name, so this is off unless `rebalance` names the three by regular
expressions. It moves stored weights between layers of one parent module: with equal shapes
these are the paper's ranks, and within budget for grouped queries too (where the paper, unlike
this allocator, shares no basis between layers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from spectrim.allocation._greedy import Floats, proportional, types_of
from spectrim.allocation._request import AllocationRequest, LayerCurve
from spectrim.errors import InputError
from spectrim.linalg.spectrum import effective_rank

REQUIRES: tuple[str, ...] = ()
REFERENCE = "Mi et al., 2025, arXiv:2509.25622"
_BISECTIONS = 60


@dataclass(frozen=True)
class Options:
    """Options of D-Rank.

    rebalance: expressions (from, from, to), for example (q_proj, k_proj, v_proj).
    """

    rebalance: tuple[()] | tuple[str, str, str] = ()
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.3


def allocate(request: AllocationRequest, options: Options) -> dict[str, int | None]:
    wanted = np.zeros(len(request.curves))
    for members in types_of(request.curves):
        wanted[members] = _stationary(request, [request.curves[m] for m in members])
    if options.rebalance:
        wanted = _rebalanced(request.curves, wanted, options)
    return proportional(request, [request.choices(curve) for curve in request.curves], wanted)


def _stationary(request: AllocationRequest, curves: Sequence[LayerCurve]) -> Floats:
    """Return weights per layer of one type at the ranks where the Lagrangian is stationary."""
    one = curves[0]
    ranks = np.arange(min(one.shape) + 1)
    costs = np.minimum([request.cost(one, int(r)) for r in ranks], one.dense_cost)
    share = np.array([effective_rank(torch.from_numpy(c.spectrum)) for c in curves]) ** 0.5
    low, high = 0.0, float(len(ranks) / share.min())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        spent = np.interp(middle * share, ranks, costs).sum()
        fits = spent <= request.budget * one.dense_cost * len(curves)
        low, high = (middle, high) if fits else (low, middle)
    return np.interp(low * share, ranks, costs)


def _rebalanced(curves: Sequence[LayerCurve], wanted: Floats, options: Options) -> Floats:
    """Move a fraction beta of the first two's weights to the third, module by module."""
    first, second, to = (_matching(curves, pattern) for pattern in options.rebalance)
    result, moved = wanted.copy(), False
    for parent in dict.fromkeys(_parent(curve) for curve in curves):
        here = {i for i, curve in enumerate(curves) if _parent(curve) == parent}
        givers, takers = sorted(here & (first | second)), sorted(here & to)
        if not givers or not takers:
            continue
        result[givers] -= options.beta * wanted[givers]
        result[takers] += options.beta * wanted[givers].sum() / len(takers)
        moved = True
    if not moved:
        raise InputError(
            "rebalance: no parent module holds layers of both sides; give two expressions to "
            "take weights from and one to give them to, for example q_proj, k_proj, v_proj"
        )
    return result


def _parent(curve: LayerCurve) -> str:
    return curve.name.rpartition(".")[0]


def _matching(curves: Sequence[LayerCurve], pattern: str) -> set[int]:
    try:
        found = {i for i, curve in enumerate(curves) if re.search(pattern, curve.name)}
    except re.error as error:
        raise InputError(
            f"rebalance: '{pattern}' is not a regular expression: {error}"
        ) from error
    if not found:
        some = ", ".join(curve.name for curve in curves[:3])
        raise InputError(f"rebalance: '{pattern}' matches no layer; names look like {some}")
    return found
