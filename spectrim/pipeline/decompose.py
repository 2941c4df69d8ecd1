"""From statistics to factors with their predicted curves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import NumericalError, NumericalWarning
from spectrim.models.linear import get_weight
from spectrim.pipeline.basis_groups import Groups, group_layers
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, make_plan
from spectrim.planning.predicted import NEEDED
from spectrim.planning.solver import Solver, decompose_problems, entry_names, layer_problem
from spectrim.runtime import distributed
from spectrim.runtime.context import RunContext
from spectrim.runtime.memory import trim_memory
from spectrim.runtime.snapshots import Snapshots
from spectrim.statistics import Calibration
from spectrim.version import __version__

_SHOWN = 5


def decompose(
    model: nn.Module,
    calibration: Calibration,
    recipe: Recipe | None = None,
    snapshots: Snapshots | None = None,
    context: RunContext | None = None,
) -> Decomposition:
    """Factors of every calibrated layer with their predicted loss curves; by the recipe's
    sharing, of groups of layers on one basis.

    A layer that no loss came through (an expert that no token reached, say) gets no factors:
    it stays dense and outside the budget, with a NumericalWarning that names it. Layers in
    `snapshots` are not decomposed again. Raises
    NumericalError for weights or statistics that cannot be factorised.
    """
    recipe = recipe or Recipe()
    context = context or RunContext()
    solver = make_solver(recipe, calibration.states, calibration.provenance)
    names = layers_with_signal(calibration)
    groups = group_layers(model, calibration, names, recipe)
    trim_memory()  # what the passes of the calibration held
    own = _shard(model, groups)
    problems = (
        tuple(layer_problem(model, calibration, name) for name in group) for group in own
    )
    with distributed.raise_together():
        shown = context.progress(problems, "decomposing", len(own))
        result = decompose_problems(shown, solver, snapshots)
    return _gather(result, groups)


def make_solver(
    recipe: Recipe, statistics: Container[str], provenance: Mapping[str, Any]
) -> Solver:
    """Return what decomposes layers by the recipe's method, with the `statistics` that there
    are."""
    empty = Decomposition(
        recipe.method,
        shapes={},
        factors={},
        curves={},
        units="nats per token" if all(name in statistics for name in NEEDED) else "own",
        provenance={**provenance, "versions": versions()},
    )
    options = DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    return Solver(empty, options, None if recipe.sharing.accept == "all" else _price(recipe))


def _price(recipe: Recipe) -> Callable[[Decomposition], float]:
    """Return the predicted loss of the best plan at the budget that sharing is decided at."""
    recipe = recipe.with_changes(
        budget=recipe.sharing.budget, allocation="loss_optimal", allocation_options={}
    )

    def price(result: Decomposition) -> float:
        return sum(layer.predicted_loss for layer in make_plan(result, recipe).layers.values())

    return price


def _shard(model: nn.Module, groups: Groups) -> Groups:
    """Return the groups that this process decomposes: about as much work as the others."""
    owners = distributed.balanced_bins(
        [_cost(model, group) for group in groups], distributed.num_processes()
    )
    own = distributed.process_index()
    return [group for group, owner in zip(groups, owners, strict=True) if owner == own]


def _cost(model: nn.Module, names: Sequence[str]) -> float:
    """Return the operations up to a factor: out * in * min(out, in) of every layer."""
    weights = [get_weight(model.get_submodule(name)) for name in names]
    return float(sum(w.numel() * min(w.shape) for w in weights))


def _gather(own: Decomposition, groups: Groups) -> Decomposition:
    """Return what all processes have decomposed, in the order of the groups."""
    if distributed.num_processes() == 1:
        return own
    shapes, members = distributed.gather_dict(own.shapes), distributed.gather_dict(own.groups)
    whole = own.from_tensors(shapes, distributed.gather_tensors(own.tensors()), members)
    return whole.select(name for group in groups for name in entry_names(whole, group))


def layers_with_signal(calibration: Calibration) -> list[str]:
    """Warns of the others. Raises NumericalError when there is none."""
    names = [name for name in calibration.groups if _has_signal(calibration, name)]
    _warn_of_others([name for name in calibration.groups if name not in names], len(names))
    return names


def _has_signal(calibration: Calibration, name: str) -> bool:
    """Tokens reached the layer, and where gradients were summed, one of them is not zero."""
    gradients = calibration.states.get("gradient_covariance")
    reached = calibration.counts[name] > 0
    return reached and (gradients is None or any(t.any() for t in gradients[name].values()))


def _warn_of_others(names: Sequence[str], rest: int) -> None:
    if not rest:
        raise NumericalError(
            "no loss came through any of the layers; check the model's weights, "
            "or calibrate on more data"
        )
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        warnings.warn(
            f"no loss came through {len(names)} of {len(names) + rest} calibrated layers "
            f"({shown}): they stay dense and outside the budget; calibrate on more data",
            NumericalWarning,
            stacklevel=4,
        )


def versions() -> dict[str, str]:
    return {
        "spectrim": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
