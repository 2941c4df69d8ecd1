"""From statistics to factors with their predicted curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from spectrim.decompositions import DECOMPOSITIONS, decompose_group, decompose_layer
from spectrim.errors import NumericalError
from spectrim.linalg.truncated import Factors
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.prepare import warn_of_dense
from spectrim.pipeline.basis_groups import group_layers, pooled_problems
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, make_plan
from spectrim.planning.predicted import NEEDED, first_order_effects, predicted_curve
from spectrim.planning.snapshots import LayerSnapshots
from spectrim.runtime import distributed
from spectrim.runtime.context import RunContext
from spectrim.runtime.memory import trim_memory
from spectrim.runtime.snapshots import Snapshots
from spectrim.statistics import Calibration, LayerProblem
from spectrim.version import __version__

NOT_REACHED = "no token of the calibration text reaches them"
ZERO_INPUT = "their input is zero on the calibration text"
NO_LOSS = "the loss of the calibration text does not depend on them"


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
    options = DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    names = layers_with_signal(calibration)
    dense = calibration.provenance.get("dense", {}) | silent_layers(calibration)
    result = Decomposition(
        recipe.method,
        shapes={},
        factors={},
        curves={},
        units="nats per token" if set(NEEDED) <= set(calibration.states) else "own",
        provenance={**calibration.provenance, "dense": dense, "versions": versions()},
    )
    groups = group_layers(model, calibration, names, recipe)
    source = _Source(model, calibration, recipe, options)
    trim_memory()  # what the passes of the calibration held
    context = context or RunContext()
    stored = LayerSnapshots(snapshots or Snapshots(None))
    owners = distributed.balanced_bins(
        [source.cost(group) for group in groups], distributed.num_processes()
    )
    own = [
        g
        for g, owner in zip(groups, owners, strict=True)
        if owner == distributed.process_index()
    ]
    with distributed.raise_together():
        earlier = stored.load() or result.select(())
        for group in context.progress(own, "decomposing", len(own)):
            if entries := _stored(earlier, group):
                result.update(earlier.select(entries))
                continue
            for entry in source.chosen(group):
                entry.put_into(result)
            stored.save_if_due(result)
    return _of_all(result, groups)


def _of_all(own: Decomposition, groups: Sequence[tuple[str, ...]]) -> Decomposition:
    """What each process has decomposed, together and in the order of the groups."""
    if distributed.num_processes() == 1:
        return own
    shapes, members = distributed.gather_dict(own.shapes), distributed.gather_dict(own.groups)
    whole = own.from_tensors(shapes, distributed.gather_tensors(own.tensors()), members)
    return whole.select(name for group in groups for name in _stored(whole, group))


def _stored(earlier: Decomposition, group: tuple[str, ...]) -> tuple[str, ...]:
    """The names under which it has all of a group: together, or apart."""
    together = ("+".join(group),)
    choices = (together, group)
    return next((names for names in choices if set(names) <= set(earlier.shapes)), ())


@dataclass(frozen=True)
class _Entry:
    """A decomposed layer, or a group of layers on one basis."""

    name: str
    factors: Factors
    curve: Tensor
    first_order_effects: Tensor | None
    members: dict[str, int]

    def put_into(self, result: Decomposition) -> None:
        name, factors = self.name, self.factors
        result.shapes[name] = (factors.left.shape[0], factors.right.shape[1])
        result.factors[name] = factors
        result.curves[name] = self.curve
        if self.first_order_effects is not None:
            result.first_order_effects[name] = self.first_order_effects
        if self.members:
            result.groups[name] = self.members


@dataclass(frozen=True)
class _Source:
    model: nn.Module
    calibration: Calibration
    recipe: Recipe
    options: Any

    def cost(self, names: tuple[str, ...]) -> float:
        """Operations up to a factor: out * in * min(out, in) of every layer."""
        weights = [get_weight(self.model.get_submodule(name)) for name in names]
        return float(sum(w.numel() * min(w.shape) for w in weights))

    def chosen(self, names: tuple[str, ...]) -> list[_Entry]:
        """The layers as a group, or apart where the recipe asks for what is cheaper."""
        if len(names) == 1:
            return [self.single(names[0])]
        together = [self.group(names)]
        if self.recipe.sharing.accept == "all":
            return together
        apart = [self.single(name) for name in names]
        return together if self.price(together) < self.price(apart) else apart

    def single(self, name: str) -> _Entry:
        layer = self.model.get_submodule(name)
        statistics = self.calibration.layer(name)
        problem = LayerProblem(name, get_weight(layer).detach(), get_bias(layer), statistics)
        factors = decompose_layer(self.recipe.method, problem, self.options)
        curve = predicted_curve(factors, statistics)
        return _Entry(name, factors, curve, _signed({name: factors}, self.calibration), {})

    def group(self, names: tuple[str, ...]) -> _Entry:
        problems = pooled_problems(self.model, self.calibration, names)
        factors = decompose_group(self.recipe.method, problems, self.options)
        members = {problem.name: len(problem.weight) for problem in problems}
        parts = factors.split(members)
        if set(NEEDED) <= set(self.calibration.states):
            curves = [predicted_curve(f, self.calibration.layer(n)) for n, f in parts.items()]
        else:
            curves = [predicted_curve(factors, None)]
        total, signed = torch.stack(curves).sum(0), _signed(parts, self.calibration)
        return _Entry("+".join(names), factors, total, signed, members)

    def price(self, entries: list[_Entry]) -> float:
        """Predicted loss of the best plan at the budget that sharing is decided at."""
        result = Decomposition(self.recipe.method, {}, {}, {})
        for entry in entries:
            entry.put_into(result)
        recipe = self.recipe.with_changes(
            budget=self.recipe.sharing.budget, allocation="loss_optimal", allocation_options={}
        )
        return sum(
            layer.predicted_loss for layer in make_plan(result, recipe.planning).layers.values()
        )


def _signed(parts: Mapping[str, Factors], calibration: Calibration) -> Tensor | None:
    """First-order effects, of a group the sum over its members."""
    if "mean_gradient" not in calibration.states:
        return None
    effects = [first_order_effects(f, calibration.layer(name)) for name, f in parts.items()]
    return torch.stack(effects).sum(0)


def layers_with_signal(calibration: Calibration) -> list[str]:
    """Warn of the other layers. Raises NumericalError when there is none."""
    silent = silent_layers(calibration)
    names = [name for name in calibration.groups if name not in silent]
    if not names:
        raise NumericalError(
            f"no loss came through any of the layers ({'; '.join(sorted(set(silent.values())))}"
            "); check the model's weights and the calibration text"
        )
    warn_of_dense(silent, len(names))
    return names


def silent_layers(calibration: Calibration) -> dict[str, str]:
    """Return by name, in words, why nothing is known of a layer from this text."""
    reasons = {name: _silence(calibration, name) for name in calibration.groups}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _silence(calibration: Calibration, name: str) -> str | None:
    if calibration.counts[name] == 0:
        return NOT_REACHED
    if _is_zero(calibration, "input_covariance", name):
        return ZERO_INPUT
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
