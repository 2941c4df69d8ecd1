"""Factors with predicted curves from statistics."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn

from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import NumericalError, NumericalWarning
from spectrim.models.kind import kind_named
from spectrim.models.linear import get_weight
from spectrim.models.prepare import warn_of_dense
from spectrim.models.source import ModelSource, open_source
from spectrim.pipeline.basis_groups import Groups, group_layers
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, make_plan
from spectrim.planning.lazy_decomposition import LayerFiles
from spectrim.planning.predicted import NEEDED
from spectrim.planning.solver import Solver, decompose_problems, entry_names, layer_problems
from spectrim.runtime import distributed
from spectrim.runtime.context import RunContext
from spectrim.runtime.memory import trim_memory
from spectrim.runtime.snapshots import Snapshots
from spectrim.statistics import Calibration
from spectrim.version import __version__

NOT_REACHED = "no token of the calibration text reaches them"
ZERO_INPUT = "their input is zero on the calibration text"
ZERO_OUTPUT = "their output is zero on the calibration text"
NO_LOSS = "the loss of the calibration text does not depend on them"

ENOUGH = 2
"""Tokens per channel below which covariances say too little."""


def decompose(
    model: nn.Module | ModelSource,
    calibration: Calibration,
    recipe: Recipe | None = None,
    stored: Snapshots | LayerFiles | None = None,
    context: RunContext | None = None,
) -> Decomposition:
    """Return factors of every calibrated layer, or group on one basis, with predicted curves.

    A layer without gradients (for example an expert that no token reached) gets no factors: it
    stays dense and outside the budget, with a NumericalWarning that names it. Layers that are
    `stored` are not decomposed again; factors in `LayerFiles` stay there until they are read.
    Raises NumericalError for weights or statistics that cannot be factorized.
    """
    source = open_source(model)
    recipe = recipe or Recipe()
    context = context or RunContext()
    silent = silent_layers(calibration)
    names = layers_with_signal(calibration, silent)
    warn_of_few_tokens(source.model, calibration, names)
    solver = make_solver(recipe, calibration.states, provenance_of(calibration, silent))
    groups = group_layers(source.model, calibration, names, recipe)
    trim_memory()  # what the passes of the calibration held
    own = _shard(source.model, groups)
    if isinstance(stored, LayerFiles):
        own = [(name,) for name in stored.missing(names)]
    problems = layer_problems(source, calibration, own)
    with distributed.raise_together():
        shown = context.progress(problems, "decomposing", len(own))
        if isinstance(stored, LayerFiles):
            for group in shown:
                stored.save(solver.solve(group))
            return stored.load(names)
        result = decompose_problems(shown, solver, stored)
    return _gather(result, groups)


def make_solver(
    recipe: Recipe, statistics: Container[str], provenance: Mapping[str, Any]
) -> Solver:
    """Return the solver of the recipe's method, for the available `statistics`."""
    units = kind_named(provenance).units
    empty = Decomposition(
        recipe.method,
        shapes={},
        factors={},
        curves={},
        units=units if all(name in statistics for name in NEEDED) else "own",
        provenance={**provenance, "versions": versions()},
    )
    options = DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    return Solver(empty, options, None if recipe.sharing.accept == "all" else _price(recipe))


def provenance_of(calibration: Calibration, silent: Mapping[str, str]) -> dict[str, Any]:
    """Return the provenance of a calibration, with the reasons why layers stay dense."""
    dense = calibration.provenance.get("dense", {}) | silent
    return {**calibration.provenance, "dense": dense}


def _price(recipe: Recipe) -> Callable[[Decomposition], float]:
    """Return the predicted loss of the best plan at the budget of the sharing decision."""
    settings = replace(
        recipe.planning,
        budget=recipe.sharing.budget,
        allocation="loss_optimal",
        allocation_options={},
    )

    def price(result: Decomposition) -> float:
        plan = make_plan(result, settings)
        return sum(layer.predicted_loss for layer in plan.layers.values())

    return price


def _shard(model: nn.Module, groups: Groups) -> Groups:
    """Return the groups of this process: about as much work as the others have."""
    return distributed.own_items(groups, [_cost(model, group) for group in groups])


def _cost(model: nn.Module, names: Sequence[str]) -> float:
    """Return the operations up to a factor: out * in * min(out, in) of every layer."""
    weights = [get_weight(model.get_submodule(name)) for name in names]
    return float(sum(w.numel() * min(w.shape) for w in weights))


def _gather(own: Decomposition, groups: Groups) -> Decomposition:
    """Return the decompositions of all processes, in the order of the groups."""
    if distributed.num_processes() == 1:
        return own
    shapes, members = distributed.gather_dict(own.shapes), distributed.gather_dict(own.groups)
    whole = own.from_tensors(shapes, distributed.gather_tensors(own.tensors()), members)
    return whole.select(name for group in groups for name in entry_names(whole, group))


def layers_with_signal(
    calibration: Calibration, silent: Mapping[str, str] | None = None
) -> list[str]:
    """Return the layers with nonzero statistics; warn of the others.

    silent: by `silent_layers`. Raises NumericalError if no layer is left.
    """
    silent = silent_layers(calibration) if silent is None else silent
    names = [name for name in calibration.groups if name not in silent]
    if not names:
        raise NumericalError(
            f"no target layer can be decomposed ({'; '.join(sorted(set(silent.values())))}); "
            "check the model's weights, or calibrate on more data"
        )
    warn_of_dense(silent, len(names))
    return names


def warn_of_few_tokens(model: nn.Module, calibration: Calibration, names: list[str]) -> None:
    """Warn (NumericalWarning) of layers that too few tokens reached for their channels."""
    if not set(NEEDED) & set(calibration.states):
        return
    widths = {name: max(get_weight(model.get_submodule(name)).shape) for name in names}
    counts = calibration.counts
    few = [name for name in names if counts[name] < ENOUGH * widths[name]]
    if few:
        worst = min(few, key=lambda name: counts[name] / widths[name])
        warnings.warn(
            f"{len(few)} of {len(names)} layers saw fewer than {ENOUGH} tokens per channel "
            f"({worst}: {counts[worst]:.0f} tokens for {widths[worst]} channels): the "
            "predicted loss of these is uncertain and mostly too low; calibrate on more tokens",
            NumericalWarning,
            stacklevel=3,
        )


def silent_layers(calibration: Calibration) -> dict[str, str]:
    """Return by layer the reason why this text gives no statistics of it."""
    known = calibration.provenance.get("dense", {})
    reasons = {n: known.get(n) or _silence(calibration, n) for n in calibration.groups}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _silence(calibration: Calibration, name: str) -> str | None:
    if calibration.counts[name] == 0:
        return NOT_REACHED
    if _is_zero(calibration, "input_covariance", name):
        return ZERO_INPUT
    if _is_zero(calibration, "output_covariance", name):
        return ZERO_OUTPUT
    return NO_LOSS if _is_zero(calibration, "gradient_covariance", name) else None


def _is_zero(calibration: Calibration, statistic: str, name: str) -> bool:
    by_layer = calibration.states.get(statistic, {})
    state = by_layer.get(name) or by_layer.get(calibration.groups[name]) or {}
    return bool(state) and not any(bool(tensor.any()) for tensor in state.values())


def versions() -> dict[str, str]:
    return {
        "spectrim": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
