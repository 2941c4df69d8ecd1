"""Measured curves: a few forward passes correct the errors of the quadratic model.

Per layer, at the ranks it would get in two plans of different size:

    curve(r) <- curve(r) * f(curve(r)),   f = measured / predicted at the two ranks,
                                          interpolated in log curve, constant outside

and for full-model plans, a map from the sum over layers to the divergence of all layers
together (`JointCorrection`). Divergence is KL to the original on calibration tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.models.expert_removal import ExpertRemoval
from spectrim.planning.decomposition import Decomposition, JointCorrection
from spectrim.planning.experts import ExpertCurve
from spectrim.planning.planner import drop_experts, make_plan
from spectrim.planning.probe import DivergenceProbe
from spectrim.planning.settings import PlanningSettings
from spectrim.runtime import distributed

LAYER_BUDGETS = (0.75, 0.35)
JOINT_BUDGETS = (0.95, 0.8, 0.6, 0.35)
EXPERT_PARTS = (1 / 3, 2 / 3)
DENSE_STAND_IN = 0.85
"""Fraction of full rank at which a layer is measured that a plan leaves dense."""
_NONE = 1e-30
"""Below it a predicted loss has no ratio to a measured one."""
_FLOOR = 1e-6

ProgressBar = Callable[[Sequence[str]], Iterable[str]]


def probe_layers(
    decomposition: Decomposition,
    probe: DivergenceProbe,
    settings: PlanningSettings,
    track: ProgressBar = iter,
    budgets: Sequence[float] = LAYER_BUDGETS,
) -> Decomposition:
    """Return the decomposition with each layer's curve rescaled by its own measurements.

    Several processes share the measurements among them.
    """
    ranks = probe_ranks(decomposition, settings, budgets)

    def measure(name: str) -> dict[int, float]:
        return {
            rank: probe.divergence(*decomposition.expand_groups({name: rank}))
            for rank in ranks[name]
        }

    measured = distributed.map_items(measure, decomposition.shapes, track)
    curves = {
        name: rescale(curve, measured[name]) for name, curve in decomposition.curves.items()
    }
    return replace(decomposition, curves=curves)


def probe_experts(
    decomposition: Decomposition, probe: DivergenceProbe, track: ProgressBar = iter
) -> Decomposition:
    """Return the decomposition with each block's curve of removed experts rescaled by two
    measurements: a third of those that can go, and two thirds.
    """

    def measure(name: str) -> ExpertCurve:
        curve = decomposition.experts[name]
        most, measured = len(curve.order), {}
        for count in sorted({max(1, round(part * most)) for part in EXPERT_PARTS}):
            removal = ExpertRemoval(name, curve.router, curve.order[:count])
            measured[most - count] = probe.divergence({}, {}, [removal])
        left = rescale(torch.tensor(curve.losses[::-1], dtype=torch.float64), measured)
        return replace(curve, losses=tuple(left.flip(0).tolist()))

    experts = distributed.map_items(measure, decomposition.experts, track)
    return replace(decomposition, experts=experts)


def probe_jointly(
    decomposition: Decomposition, probe: DivergenceProbe, settings: PlanningSettings
) -> Decomposition:
    """Return the decomposition with the map from summed to joint divergence."""

    def measure(budget: float) -> tuple[float, float] | None:
        try:
            plan = make_plan(decomposition, settings.for_probing(budget))
        except InputError:  # experts alone do not get there
            return None
        summed = plan.summed_loss
        if summed <= 0 or not (plan.ranks or plan.experts):
            return None
        factors, ranks = drop_experts(decomposition, plan).expand_groups(plan.ranks)
        measured = probe.divergence(factors, ranks, plan.removals)
        return summed, max(measured, _FLOOR)

    found = distributed.map_items(measure, JOINT_BUDGETS).values()
    pairs = [pair for pair in found if pair is not None]
    return replace(decomposition, correction=JointCorrection(_ascending(pairs)))


def rescale(curve: Tensor, measured: dict[int, float]) -> Tensor:
    """Rescale `curve` (k + 1,) by the measured {rank: loss}; it never rises with rank."""
    ranks = sorted((r for r in measured if curve[r] > _NONE), reverse=True)
    if not ranks:
        return curve
    x = np.log([float(curve[r]) for r in ranks])
    y = np.log([max(measured[r], _FLOOR) / float(curve[r]) for r in ranks])
    at = np.log(np.maximum(curve.numpy(), _NONE))
    values = curve.numpy() * np.exp(np.interp(at, x, y))
    return torch.from_numpy(np.maximum.accumulate(values[::-1])[::-1].copy())


def measured_modules(
    decomposition: Decomposition, settings: PlanningSettings
) -> dict[tuple[str, ...], int]:
    """Return how many ranks are measured for each set of modules that are cut together."""
    return {
        tuple(decomposition.groups.get(name, (name,))): len(ranks)
        for name, ranks in probe_ranks(decomposition, settings).items()
    }


def block_budgets(averages_hessian: bool) -> tuple[float]:
    """Return the one plan of `LAYER_BUDGETS` whose ranks are measured through blocks.

    There the other one, far from what the recipe asks for, makes plans worse.
    """
    return (min(LAYER_BUDGETS) if averages_hessian else max(LAYER_BUDGETS),)


def probe_ranks(
    decomposition: Decomposition,
    settings: PlanningSettings,
    budgets: Sequence[float] = LAYER_BUDGETS,
) -> dict[str, list[int]]:
    """Return the ranks at which each layer or group is measured, ascending."""
    plans = [make_plan(decomposition, settings.for_layers().for_probing(b)) for b in budgets]
    ranks: dict[str, list[int]] = {}
    for name, factors in decomposition.factors.items():
        stand_in = max(1, int(DENSE_STAND_IN * factors.max_rank))
        ranks[name] = sorted({plan.ranks.get(name, stand_in) for plan in plans})
    return ranks


def _ascending(pairs: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return the pairs sorted by sum, each sum once, with measured values non-decreasing."""
    result: list[tuple[float, float]] = []
    for summed, measured in sorted(dict(pairs).items()):
        floor = result[-1][1] if result else 0.0
        result.append((summed, max(measured, floor)))
    return tuple(result)
