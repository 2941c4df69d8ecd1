"""Equal time: the largest model of a recipe whose layers are measured to take their share.

    time(plan) = seconds of all planned layers, one after another / those of the dense ones

A plan adds up times of single shapes; in a model they are up to a tenth longer, more so if an
allocation picks what looks fast. If they exceed the budget, a new plan is made with that much
less.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import nn
from transformers import PreTrainedModel

from spectrim.allocation import LatencyTable
from spectrim.errors import InputError
from spectrim.evaluation.speed.layer_times import TimingSpec, timed_layer
from spectrim.evaluation.speed.plan_latency import measure_share
from spectrim.models.linear import get_bias
from spectrim.models.targets import Target
from spectrim.pipeline.benchmark.results import TOLERATED
from spectrim.pipeline.latency_table import timing_spec
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, Plan, make_plan
from spectrim.runtime import distributed

_ATTEMPTS = 4


def fit_to_time(
    model: PreTrainedModel, decomposition: Decomposition, recipe: Recipe, times: LatencyTable
) -> tuple[Plan, float]:
    """Return the plan, and the measured share of the dense layers' time that it takes.

    Raises InputError if no ranks meet the recipe's budget by the table.
    """
    assert recipe.latency is not None
    asked, place = recipe.latency.budget, timing_spec(recipe)
    plan = make_plan(decomposition, recipe.planning, times)
    budget, time = asked, _measured(model, plan, place)
    for _ in range(_ATTEMPTS):
        if time <= TOLERATED * asked:
            break
        budget *= asked / time
        less = recipe.with_changes(latency=replace(recipe.latency, budget=budget))
        try:
            plan = make_plan(decomposition, less.planning, times)
        except InputError:  # there is no smaller one; the row shows that it exceeds
            break
        time = _measured(model, plan, place)
    return plan, time


def _measured(model: PreTrainedModel, plan: Plan, place: TimingSpec) -> float:
    """Measure on the main process and broadcast, so that all processes use the same plan."""
    return distributed.run_on_main(partial(measure_time, model, plan, place))


def measure_time(model: PreTrainedModel, plan: Plan, place: TimingSpec) -> float:
    """Measure with random factors: a layer's time depends on its kind, shape and rank alone."""
    targets = [Target(name, layer.shape) for name, layer in plan.layers.items()]
    dense, planned = nn.Module(), nn.Module()
    for name, dense_layer, layer in _layers(model, plan, place):
        _put(dense, name, dense_layer)
        _put(planned, name, layer)
    return measure_share(dense, planned, targets, place)


def _layers(
    model: PreTrainedModel, plan: Plan, place: TimingSpec
) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    for name, layer in plan.layers.items():
        found = model.get_submodule(name)
        dense = copy.deepcopy(found).to(place.device, place.dtype)
        if layer.rank is None:
            yield name, dense, dense
        else:
            biased = get_bias(found) is not None
            yield name, dense, timed_layer(layer.shape, plan.layer, layer.rank, place, biased)


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)
