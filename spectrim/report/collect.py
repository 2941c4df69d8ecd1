"""Collect the facts of a page from a plan and its decomposition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.allocation import Storage
from spectrim.errors import InputError
from spectrim.layers import layer_class
from spectrim.models.kind import kind_named
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import SHARED, Decomposition, LayerPlan, Plan, make_plan, size_curve
from spectrim.planning.layer_bytes import storage_of
from spectrim.planning.measured import JOINT_BUDGETS
from spectrim.report.facts import Cell, LayerFacts, Part, Point, ReportData, cell_of

CURVE_BUDGETS = tuple(round(0.05 * i, 2) for i in range(1, 21))
_MOST_NUMBERS = 24_000
"""Of all spectra together, and of all curves: about 200 kB of text each."""
_MOST_PER_LAYER, _FEWEST_PER_LAYER = 96, 12
_EMBEDDINGS, _REST = "embedding and output head", "norms, biases and the rest"


def plan_facts(model: str, plan: Plan, recipe: Recipe) -> ReportData:
    """Return the facts of a plan alone; `model` is the name of the original."""
    given = plan.provenance.get("data")
    data = given if isinstance(given, dict) else {"fingerprint": given} if given else {}
    layers = [
        _module_facts(module, rows, name, plan)
        for name, layer in plan.layers.items()
        for module, rows in (layer.members or {name: layer.shape[0]}).items()
    ]
    return ReportData(
        model,
        plan.method,
        plan.allocation,
        plan.layer,
        plan.budget,
        plan.kept,
        plan.predicted_loss,
        layers,
        refined=[step.name for step in recipe.refinement],
        experts={name: list(block.removed) for name, block in plan.experts.items()},
        removed_weights=sum(block.weights for block in plan.experts.values()),
        recipe=recipe.to_yaml(),
        data=data,
        kind=kind_named(plan.provenance).name,
        units=kind_named(plan.provenance).units,
        versions=plan.provenance.get("versions", {}),
    )


def _module_facts(module: str, rows: int, name: str, plan: Plan) -> LayerFacts:
    """Split a group's weights and loss by rows; the first module has the basis."""
    layer, whole = plan.layers[name], plan.layers[name].shape[0]
    kind = SHARED if layer.members else plan.layer
    loss = layer.predicted_loss * rows / whole
    weights = _stored(layer, kind)
    if layer.members and layer.rank:
        first = next(iter(layer.members)) == module
        weights = layer.rank * (rows + (layer.shape[1] if first else 0))
    elif layer.members:
        weights = rows * layer.shape[1]
    return LayerFacts(module, (rows, layer.shape[1]), layer.rank, kind, weights, loss)


def _stored(layer: LayerPlan, kind: str) -> int:
    if layer.rank is None:
        return layer.shape[0] * layer.shape[1]
    return layer_class(kind).cost(*layer.shape, layer.rank)


def with_curves(facts: ReportData, decomposition: Decomposition, recipe: Recipe) -> ReportData:
    """Add the curve of all sizes, the measured plans, and the spectra."""
    curve = size_curve(decomposition, recipe.planning, CURVE_BUDGETS)
    return replace(
        facts,
        units=decomposition.units,
        curve=[Point(_short(p.kept), _short(p.predicted_loss), p.budget) for p in curve],
        probes=_probes(decomposition, recipe) if curve else [],
        layers=_with_spectra(facts.layers, decomposition),
    )


def _probes(decomposition: Decomposition, recipe: Recipe) -> list[Point]:
    """Return the plans measured as a whole, at their size in the recipe's layer type."""
    measured = dict(decomposition.correction.pairs)
    found = []
    for budget in JOINT_BUDGETS if measured else ():
        try:
            plan = make_plan(decomposition, recipe.planning.for_probing(budget))
        except InputError:
            continue
        loss = measured.get(plan.summed_loss)
        if loss is not None:
            spent = sum(
                _stored(layer, SHARED if layer.members else recipe.layer)
                for layer in plan.layers.values()
            )
            found.append(Point(_short(spent / decomposition.weights), _short(loss)))
    return found


def _with_spectra(layers: list[LayerFacts], decomposition: Decomposition) -> list[LayerFacts]:
    """Add the spectrum of the module with the largest predicted loss in every map cell."""
    owners = {module: n for n, members in decomposition.groups.items() for module in members}
    names = {layer.name: owners.get(layer.name, layer.name) for layer in layers}
    shown: dict[Cell, LayerFacts] = {}
    for layer in layers:
        if names[layer.name] in decomposition.factors:
            best = shown.setdefault(cell_of(layer.name), layer)
            if (layer.loss or 0.0) > (best.loss or 0.0):
                shown[cell_of(layer.name)] = layer
    wanted = {layer.name for layer in shown.values()}
    most = _MOST_NUMBERS // max(1, len(wanted))
    most = min(_MOST_PER_LAYER, max(_FEWEST_PER_LAYER, most))
    return [
        _with_spectrum(layer, names[layer.name], decomposition, most)
        if layer.name in wanted
        else layer
        for layer in layers
    ]


def _with_spectrum(
    layer: LayerFacts, name: str, decomposition: Decomposition, most: int
) -> LayerFacts:
    spectrum, curve = decomposition.factors[name].spectrum, decomposition.curves[name]
    ranks = sample_ranks(len(spectrum), most, layer.rank)
    return replace(
        layer,
        ranks=ranks,
        spectrum=[_short(spectrum[rank - 1]) for rank in ranks],
        losses=[_short(curve[rank]) for rank in ranks],
    )


def sample_ranks(highest: int, most: int, wanted: int | None) -> list[int]:
    """Return at most `most` + 1 ranks, denser at low ones, with both ends and `wanted`."""
    if highest <= most:
        return list(range(1, highest + 1))
    steps = np.linspace(0, 1, most) ** 1.5 * (highest - 1) + 1
    return sorted({int(step) for step in steps} | ({wanted} if wanted else set()))


def _short(value: float | Tensor) -> float:
    """Round to four significant digits, all that a figure shows."""
    number = float(value)
    return float(f"{number:.4g}") if math.isfinite(number) else 0.0


def with_bytes(
    facts: ReportData, original: nn.Module, smaller: nn.Module, stored: torch.dtype
) -> ReportData:
    """Add the bytes by part; the original's in the dtype of its checkpoint."""
    width = stored.itemsize
    dense = {
        name: tensor.numel() * (width if tensor.is_floating_point() else tensor.element_size())
        for name, tensor in _tensors(original).items()
    }
    left = {n: t.numel() * t.element_size() for n, t in _tensors(smaller).items()}
    parameter = next(p for p in smaller.parameters() if p.is_floating_point())
    outside = {*_names_of(original, "get_input_embeddings", "get_output_embeddings")}
    outside |= {*_names_of(smaller, "get_input_embeddings", "get_output_embeddings")}
    layers = {layer.name for layer in facts.layers}
    parts = parts_of(dense, left, layers, outside)
    return replace(facts, parts=parts, itemsize=parameter.element_size())


def with_planned_bytes(facts: ReportData, original: LoadedModel, recipe: Recipe) -> ReportData:
    """Add the expected bytes by part if all but the planned layers stay unchanged."""
    saved, model = original.dtype_for(recipe), original.model
    dense, left = (
        {
            name: tensor.numel()
            * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())
            for name, tensor in _tensors(model).items()
        }
        for dtype in (original.dtype, saved)
    )
    storage = storage_of(recipe.planning)
    left |= {
        f"{layer.name}.weight": _numbers(layer, storage) * saved.itemsize
        for layer in facts.layers
    }
    outside = _names_of(model, "get_input_embeddings", "get_output_embeddings")
    parts = parts_of(dense, left, {layer.name for layer in facts.layers}, outside)
    return replace(facts, parts=parts, itemsize=saved.itemsize)


def _numbers(layer: LayerFacts, storage: Storage | None) -> int:
    """Return the stored size of a planned layer, in numbers of the saved dtype."""
    if storage is None:
        return layer.weights
    out, inner = layer.shape
    if layer.rank is None:
        return storage(out, inner)
    if layer.kind != SHARED:
        matrices = layer_class(layer.kind).matrices(out, inner, layer.rank)
        return sum(storage(*shape) for shape in matrices)
    holds_basis = layer.weights > layer.rank * out
    return storage(out, layer.rank) + (storage(layer.rank, inner) if holds_basis else 0)


def parts_of(
    dense: dict[str, int], stored: dict[str, int], layers: set[str], outside: Iterable[str]
) -> list[Part]:
    """Return the bytes before and after, summed by the part that the tensors belong to."""
    embeddings = set(outside)
    totals: dict[str, list[int]] = {}
    for side, sizes in enumerate((dense, stored)):
        for name, size in sizes.items():
            label = _part_of(name, layers, embeddings)
            totals.setdefault(label, [0, 0])[side] += size
    ends = [label for label in (_EMBEDDINGS, _REST) if label in totals]
    order = [label for label in totals if label not in ends] + ends
    return [Part(label, *totals[label]) for label in order]


def _part_of(tensor: str, layers: set[str], embeddings: set[str]) -> str:
    pieces = tensor.split(".")
    owners = {".".join(pieces[:end]) for end in range(len(pieces), 0, -1)}
    if found := owners & layers:
        return cell_of(found.pop()).projection
    return _EMBEDDINGS if owners & embeddings else _REST


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, tied tensors once."""
    state = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}


def _names_of(model: Any, *getters: str) -> Sequence[str]:
    modules = [getattr(model, getter, lambda: None)() for getter in getters]
    wanted = [module for module in modules if module is not None]
    return [n for n, m in model.named_modules() if any(m is module for module in wanted)]
