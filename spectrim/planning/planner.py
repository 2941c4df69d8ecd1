"""Plans under a budget or a target loss, and the whole size/quality curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from spectrim.allocation import AllocationRequest, LatencyTable, LayerCurve
from spectrim.errors import InputError
from spectrim.layers import layer_class
from spectrim.planning.choose_experts import choose_experts
from spectrim.planning.decomposition import Decomposition
from spectrim.planning.display import html_table, ratio_of
from spectrim.planning.layer_bytes import rounded_for, storage_of
from spectrim.planning.plan import SHARED, ExpertPlan, LayerPlan, Plan
from spectrim.planning.rank_multiples import multiple_for
from spectrim.planning.ranks import choose_ranks
from spectrim.planning.remaining import without_experts
from spectrim.planning.settings import ExpertSettings, PlanningSettings

DEFAULT_BUDGETS = tuple(round(0.2 + 0.05 * i, 2) for i in range(17))
_BISECTIONS = 20
_SAME_KEPT = 1e-6
"""Fractions closer than this are the same but for rounding in a file."""


@dataclass(frozen=True)
class SizeLossPoint:
    """The kept fraction at a budget and its predicted loss in nats per token."""

    budget: float
    kept: float
    predicted_loss: float


class SizeCurve(list[SizeLossPoint]):
    """The points of a size/quality curve, smallest size first; a table in a notebook."""

    def __repr__(self) -> str:
        if not self:
            return "SizeCurve(no predicted loss)"
        ends = " to ".join(f"{p.kept:.0%} kept: {p.predicted_loss:+.3g}" for p in self._ends)
        return f"SizeCurve({len(self)} sizes, {ends} nats)"

    @property
    def _ends(self) -> tuple[SizeLossPoint, ...]:
        return (self[0], self[-1]) if len(self) > 1 else (self[0],)

    def _repr_html_(self) -> str:
        rows = [
            (f"{p.budget:.2f}", f"{p.kept:.1%}", ratio_of(p.predicted_loss),
             f"{p.predicted_loss:+.3g}")
            for p in self
        ]  # fmt: skip
        head = ("budget", "kept", "perplexity, predicted", "loss increase, nats")
        return html_table("Predicted quality at every size", head, rows)


def curves_of(
    decomposition: Decomposition, settings: PlanningSettings
) -> tuple[LayerCurve, ...]:
    """Return the layers' curves, with the quantization error if it is known."""
    known = rounded_for(settings) == decomposition.rounded_for
    rounding = decomposition.rounding if known else {}
    added = {name: losses.numpy() for name, losses in rounding.items()}
    signed = {
        name: effects.numpy() for name, effects in decomposition.first_order_effects.items()
    }
    return tuple(
        LayerCurve(
            name,
            decomposition.shapes[name],
            decomposition.curves[name].numpy() + added.get(name, 0.0),
            decomposition.spectrum(name).numpy(),
            signed.get(name),
            SHARED if name in decomposition.groups else None,
            float(added[name][0]) if name in added else 0.0,
        )
        for name in decomposition.shapes
    )


def make_plan(
    decomposition: Decomposition, settings: PlanningSettings, times: LatencyTable | None = None
) -> Plan:
    """Return the plan of the settings' allocation at its budget.

    times: measured times, for a budget of time. Raises InputError for a budget that no ranks
    meet.
    """
    if settings.experts is not None and decomposition.experts:
        return _plan_with_experts(decomposition, settings, settings.experts)
    request = request_for(decomposition, settings)
    ranks, facts = choose_ranks(request, settings, times)
    return plan_at(decomposition, settings, request, ranks, facts)


def _plan_with_experts(
    decomposition: Decomposition, settings: PlanningSettings, experts: ExpertSettings
) -> Plan:
    """Return a plan that removes experts, and spends what is left of the budget on the rest."""
    request = request_for(decomposition, settings)
    removed = choose_experts(
        decomposition, request, experts, lambda left: curves_of(left, settings)
    )
    left = without_experts(decomposition, removed)
    share = left.weights / decomposition.weights
    inside = settings.for_layers().at_budget(min(1.0, settings.budget / share))
    if experts.cut_ranks:
        plan = make_plan(left, inside)
    else:
        dense = dict.fromkeys(left.shapes)
        plan = plan_at(left, inside, request_for(left, inside), dense, {})
    blocks = {
        name: _block_plan(name, decomposition, sorted(gone)) for name, gone in removed.items()
    }
    return replace(
        plan,
        budget=settings.budget,
        kept=plan.kept * share,
        predicted_loss=_total(decomposition, plan.layers, blocks)
        if _priced(settings)
        else None,
        experts=blocks,
    )


def _block_plan(name: str, decomposition: Decomposition, removed: Sequence[int]) -> ExpertPlan:
    curve = decomposition.experts[name]
    left = without_experts(decomposition, {name: removed})
    loss, weights = curve.loss_without(removed) or 0.0, decomposition.weights - left.weights
    return ExpertPlan(curve.router, curve.count, tuple(removed), loss, weights)


def request_for(
    decomposition: Decomposition,
    settings: PlanningSettings,
    kind: type[AllocationRequest] = AllocationRequest,
) -> AllocationRequest:
    """Return the input of an allocator. Raises InputError for a budget that no ranks meet."""
    return kind(
        curves_of(decomposition, settings),
        settings.budget,
        settings.layer,
        multiple_for(settings.rank_multiple, decomposition.shapes.values()),
        storage_of(settings),
    )


def plan_at(
    decomposition: Decomposition,
    settings: PlanningSettings,
    request: AllocationRequest,
    ranks: Mapping[str, int | None],
    facts: Mapping[str, Any],
) -> Plan:
    """Return the plan of the layers' `ranks`, with `facts` in its provenance."""
    layers = {
        curve.name: LayerPlan(
            curve.shape,
            ranks[curve.name],
            _loss_at(curve, ranks[curve.name]),
            dict(decomposition.groups.get(curve.name, {})),
        )
        for curve in request.curves
    }
    spent = sum(request.cost(curve, ranks[curve.name]) for curve in request.curves)
    return Plan(
        method=decomposition.method,
        allocation=settings.allocation,
        layer=settings.layer,
        budget=settings.budget,
        kept=spent / request.dense_cost,
        predicted_loss=_total(decomposition, layers) if _priced(settings) else None,
        layers=layers,
        provenance=dict(decomposition.provenance) | dict(facts),
        layer_options=dict(settings.layer_options),
    )


def follow_plan(plan: Plan, decomposition: Decomposition, settings: PlanningSettings) -> Plan:
    """Return a plan that somebody may have edited, with the figures that its ranks give.

    Its budget becomes the kept fraction if that is not what the plan stated. Layers that the
    decomposition does not have keep their figures; replacing them fails.
    """
    left = drop_experts(decomposition, plan)
    curves = {curve.name: curve for curve in curves_of(left, settings)}
    curves = {
        name: curves[name]
        for name, layer in plan.layers.items()
        if name in curves and curves[name].shape == layer.shape
    }
    if not curves:
        return plan
    request = AllocationRequest(
        tuple(curves.values()), 1.0, plan.layer, 1, storage_of(settings)
    )
    layers = {
        name: replace(layer, predicted_loss=_loss_at(curves[name], layer.rank))
        if name in curves
        else layer
        for name, layer in plan.layers.items()
    }
    experts = {n: _priced_again(n, block, decomposition) for n, block in plan.experts.items()}
    gone = sum(block.weights for block in experts.values())
    spent = sum(request.cost(curves[name], layers[name].rank) for name in curves)
    kept = spent / (request.dense_cost + gone)
    edited = abs(kept - plan.kept) > _SAME_KEPT
    return replace(
        plan,
        kept=kept,
        budget=min(kept, 1.0) if edited else plan.budget,
        predicted_loss=_total(decomposition, layers, experts) if _priced(settings) else None,
        layers=layers,
        experts=experts,
    )


def drop_experts(decomposition: Decomposition, plan: Plan) -> Decomposition:
    """Return what is left of a decomposition without the experts that `plan` removes."""
    if not plan.experts:
        return decomposition
    removed = {name: block.removed for name, block in plan.experts.items()}
    return without_experts(decomposition, removed)


def _priced_again(name: str, block: ExpertPlan, decomposition: Decomposition) -> ExpertPlan:
    """Return a block with the figures of its removed experts, where their order has them."""
    curve = decomposition.experts.get(name)
    if curve is None or curve.loss_without(block.removed) is None:
        return block
    return _block_plan(name, decomposition, block.removed)


def _loss_at(curve: LayerCurve, rank: int | None) -> float:
    return float(curve.loss[rank]) if rank else curve.dense_loss


def _priced(settings: PlanningSettings) -> bool:
    """Return whether the curves, which are those of cut factors, hold for the layer type."""
    return layer_class(settings.layer).LOSSLESS


def _total(
    decomposition: Decomposition,
    layers: Mapping[str, LayerPlan],
    experts: Mapping[str, ExpertPlan] = MappingProxyType({}),
) -> float | None:
    if decomposition.units == "own":
        return None
    summed = sum(layer.predicted_loss for layer in layers.values())
    summed += sum(block.predicted_loss for block in experts.values())
    return decomposition.correction(summed)


def size_curve(
    decomposition: Decomposition,
    settings: PlanningSettings,
    budgets: Sequence[float] = DEFAULT_BUDGETS,
) -> SizeCurve:
    """Return the predicted loss for every budget that the layers can meet."""
    points = SizeCurve()
    for budget in budgets:
        try:
            plan = make_plan(decomposition, settings.at_budget(budget))
        except InputError:
            continue
        if plan.predicted_loss is not None:
            points.append(SizeLossPoint(budget, plan.kept, plan.predicted_loss))
    return points


def plan_for_loss(
    decomposition: Decomposition, settings: PlanningSettings, target: float
) -> Plan:
    """Return the smallest plan whose predicted loss is at most `target` nats per token.

    Raises InputError for a target that is not positive.
    """
    if not target > 0:
        raise InputError(f"target loss {target} must be above 0 nats per token")
    if decomposition.units == "own":
        raise InputError("a target loss needs curves in nats: calibrate with gradients")
    if not _priced(settings):
        raise InputError(
            f"layers of type '{settings.layer}' have no predicted loss for a target; "
            "set a budget, or choose another type"
        )
    low, high = 0.0, 1.0
    best = make_plan(decomposition, settings.at_budget(1.0))
    if settings.quantizer is not None and (best.predicted_loss or 0.0) > target:
        raise InputError(
            f"rounding alone is predicted to cost {best.predicted_loss:.4f} nats per token, "
            f"more than the target loss {target}; use more bits"
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        plan = _plan_or_none(decomposition, settings.at_budget(middle))
        if plan is not None and (plan.predicted_loss or 0.0) <= target:
            best, high = plan, middle
        else:
            low = middle
        if high - low < 1e-4:
            break
    return best


def _plan_or_none(decomposition: Decomposition, settings: PlanningSettings) -> Plan | None:
    try:
        return make_plan(decomposition, settings)
    except InputError:
        return None
