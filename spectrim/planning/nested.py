"""Plans of every size between two budgets that lie within one another."""

from __future__ import annotations

from spectrim.allocation import ComponentRequest, NestedSizes, nest_sizes
from spectrim.errors import InputError
from spectrim.planning.decomposition import Decomposition
from spectrim.planning.plan import Plan
from spectrim.planning.planner import plan_at, request_for
from spectrim.planning.settings import PlanningSettings


def nested_sizes(
    decomposition: Decomposition, settings: PlanningSettings, smallest: float
) -> NestedSizes:
    """Return the sizes from `smallest` to the settings' budget.

    Raises InputError for a size that no ranks meet, and for layers on a shared basis.
    """
    if decomposition.groups:
        raise InputError("layers on a shared basis have one size; set sharing.rule=none")
    request = request_for(decomposition, settings, ComponentRequest)
    return nest_sizes(request, smallest, decomposition.correction)


def nested_plan(
    decomposition: Decomposition, settings: PlanningSettings, sizes: NestedSizes, budget: float
) -> Plan:
    """Return the plan of one of `sizes`. Raises InputError for a budget outside their range."""
    at = settings.at_budget(budget)
    facts = {"elastic": [sizes.smallest, sizes.largest]}
    request = request_for(decomposition, at, ComponentRequest)
    return plan_at(decomposition, at, request, sizes.ranks(budget), facts)
