"""The importance of BSI as an allocator: gradient and curvature of what is cut, on any text.

    I(r) = -sum_{i>r} left_i^T G right_i^T  +  1/2 sum_{i,j>r} H_ij,      G = E[g x^T]

H is the curvature between components of a layer by OBD's Kronecker factors: the first-order
effects that `zs_svd` balances plus the curve that `loss_optimal` minimizes. Ranks minimize the
sum under the budget; a cut with a predicted gain counts as nearly free, not as a gain.
Components are dropped in the order of the layer's spectrum; to choose them one by one for a
task, prune for the task instead (`spectrim compress --recipe bsi`).
"""

from __future__ import annotations

import numpy as np

from spectrim.allocation._greedy import Floats
from spectrim.allocation._knapsack import KnapsackGroup, solve_knapsack
from spectrim.allocation._request import AllocationRequest, LayerCurve, RankChoices
from spectrim.errors import InputError
from spectrim.registry import NoOptions

REQUIRES = ("input_covariance", "gradient_covariance", "mean_gradient")
LEAST = 1e-2
"""Of the curvature's part: the importance of a cut is never below it."""
REFERENCE = "BSI, 2026, arXiv:2605.01627; curvature of Li et al., 2026, arXiv:2604.00821"


def allocate(request: AllocationRequest, options: NoOptions) -> dict[str, int | None]:
    """Return the ranks. Raises InputError if the signed effects were not gathered."""
    choices = [request.choices(curve) for curve in request.curves]
    items = [
        KnapsackGroup(choice.costs, _importance(curve, choice))
        for curve, choice in zip(request.curves, choices, strict=True)
    ]
    picked = solve_knapsack(items, request.weights)
    return {
        curve.name: int(choice.ranks[index]) or None
        for curve, choice, index in zip(request.curves, choices, picked, strict=True)
    }


def _importance(curve: LayerCurve, choice: RankChoices) -> Floats:
    """Return I of every choice; 0 for the dense layer, which comes last."""
    if curve.first_order_effects is None:
        raise InputError(
            f"'bsi' needs the signed effects of {curve.name}, which are not in this "
            "decomposition; calibrate with the statistic mean_gradient"
        )
    cut = np.append(np.cumsum(curve.first_order_effects[::-1])[::-1], 0.0)
    losses = choice.losses[:-1]
    return np.append(np.maximum(losses + cut[choice.ranks[:-1]], LEAST * losses), 0.0)
