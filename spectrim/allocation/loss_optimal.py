"""Ranks that minimize the predicted loss of the whole model under one budget.

    min sum_l loss_l(r_l)   subject to   sum_l cost_l(r_l) <= budget

Separable, so one multiplier solves its relaxation; the jumps (a layer that is cheaper left
dense, rank multiples, non-convex curves) make it a multiple-choice knapsack, solved exactly
over the choices that the multiplier does not decide.
"""

from __future__ import annotations

from spectrim.allocation._knapsack import KnapsackGroup, solve_knapsack
from spectrim.allocation._request import AllocationRequest
from spectrim.registry import NoOptions

REQUIRES = ("input_covariance", "gradient_covariance")
REFERENCE = "methods of Lagrange, Everett, 1963; spectra of Li et al., 2026, arXiv:2604.00821"


def allocate(request: AllocationRequest, options: NoOptions) -> dict[str, int | None]:
    choices = [request.choices(curve) for curve in request.curves]
    picked = solve_knapsack(
        [KnapsackGroup(c.costs, c.losses) for c in choices], request.weights
    )
    return {
        curve.name: int(choice.ranks[index]) or None
        for curve, choice, index in zip(request.curves, choices, picked, strict=True)
    }
