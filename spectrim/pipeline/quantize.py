"""Compressed layers with a low-rank correction of the compressor's error.

    R = W - Q(W),   min_{rank r} || L_out^T (R - left right) L_in ||

R is a layer problem like any other, so every method with a metric applies to it: `eora` takes
C_x (arXiv:2410.21271), `obd` C_x and C_g (arXiv:2604.00821). Its curve at rank 0 is the
predicted loss of the compressor alone, in nats per token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.checkpoint import SpectrimConfig, attach_config
from spectrim.checkpoint.config_entries import compensated_entry
from spectrim.layers.quantized import QUANTIZERS, CompensatedLinear, CompressedLinear
from spectrim.models.experts import split_expert_names
from spectrim.models.replace import replace_layer
from spectrim.models.source import ResidentModel
from spectrim.pipeline import compatibility
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.decompose import layers_with_signal, make_solver, versions
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.quantizer_options import bits_held, check_bits, options_by_layer, shares
from spectrim.pipeline.recipe import CorrectionRecipe, Recipe
from spectrim.pipeline.replace import cast_for_saving, shared_copy, untie_head
from spectrim.planning import Decomposition
from spectrim.planning.correction_ranks import correction_ranks, uniform_cost
from spectrim.planning.solver import Problems, decompose_problems, layer_problems
from spectrim.runtime.context import RunContext


@dataclass(frozen=True)
class Residual:
    """Compressed layers by name, and their decomposed errors; None without calibration."""

    bases: dict[str, CompressedLinear]
    decomposition: Decomposition | None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {n: (base.out_features, base.in_features) for n, base in self.bases.items()}


def quantize(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe | None = None,
    context: RunContext | None = None,
) -> PreTrainedModel:
    """Return a copy of `model`, every layer compressed with a low-rank path beside it.

    It follows `recipe.correction` and is in the recipe's dtype. The ranks follow the recipe's
    allocation, uniform or loss_optimal. Rank 0 is the compressor alone, and needs no text
    unless the compressor requires statistics. Raises InputError for options that do not fit
    together, ModelError for layers that cannot be compressed.
    """
    recipe = with_correction(recipe or Recipe())
    residual = compute_residual(model, tokenizer, recipe, context)
    ranks = choose_correction_ranks(residual, recipe, dtype_of(model, recipe).itemsize)
    return add_corrections(model, residual, ranks, recipe)


def with_correction(recipe: Recipe) -> Recipe:
    """Return the recipe with a correction, and statistics of the original only.

    Raises InputError for what a correction cannot be combined with.
    """
    recipe = recipe.with_changes(
        correction=recipe.correction or CorrectionRecipe(),
        hessian_averaging=replace(recipe.hessian_averaging, weight=0.0),
    )
    compatibility.check(recipe, compatibility.QUANTIZE)
    return recipe


def dtype_of(model: PreTrainedModel, recipe: Recipe) -> torch.dtype:
    return getattr(torch, recipe.save_dtype) if recipe.save_dtype else model.dtype


def compute_residual(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    context: RunContext | None = None,
) -> Residual:
    """Compress every layer and decompose its error at full rank, to cut ranks from it.

    The weights are in the recipe's dtype, in which torchao also stores scales and zeros.
    """
    context = context or RunContext()
    given = _given(recipe)
    dtype, calibration = dtype_of(model, recipe), None
    targets = prepare(model, recipe, context.cache).targets
    names = [target.name for target in targets]
    check_bits([target.shape for target in targets], given, dtype.itemsize)
    if needs_text(given):
        calibration = calibrate(model, tokenizer, recipe, context)
        names = layers_with_signal(calibration)
    options = options_by_layer(model, calibration, names, given, dtype.itemsize, context)
    compress = QUANTIZERS.get(given.quantizer).compress
    bases: dict[str, CompressedLinear] = {}

    def residuals() -> Iterator[Problems]:
        groups = [(name,) for name in names]
        for (problem,) in layer_problems(ResidentModel(model), calibration, groups):
            stored = replace(problem, weight=problem.weight.to(dtype))
            base = bases[problem.name] = compress(stored, options[problem.name])
            weight = problem.weight.double() - base.dense()[0]
            yield (replace(problem, weight=weight, bias=None),)

    shown = context.progress(residuals(), f"compressing by {given.quantizer}", len(names))
    if calibration is None:
        deque(shown, maxlen=0)
        return Residual(bases, None)
    solver = make_solver(recipe, calibration.states, calibration.provenance)
    return Residual(bases, decompose_problems(shown, solver))


def choose_correction_ranks(
    residual: Residual, recipe: Recipe, itemsize: int
) -> dict[str, int]:
    """Return the rank of each layer's correction, for numbers of `itemsize` bytes."""
    given = _given(recipe)
    if residual.decomposition is None or given.bits_per_weight is not None:
        return dict.fromkeys(residual.bases, 0)
    budget = uniform_cost(residual.shapes, given.rank)
    if given.bytes is not None:
        budget = given.bytes // itemsize
    return correction_ranks(residual.decomposition, recipe.planning, budget)


def add_corrections(
    model: PreTrainedModel, residual: Residual, ranks: dict[str, int], recipe: Recipe
) -> PreTrainedModel:
    """Return a copy of `model` with the compressed layers and paths of the given ranks."""
    result = shared_copy(model)
    untied = untie_head(result, list(residual.bases))
    layers = {name: _layer(residual, name, rank) for name, rank in ranks.items()}
    for name, layer in layers.items():
        replace_layer(result, name, layer)
    result = cast_for_saving(result, dtype_of(model, recipe))
    result.config.dtype = next(result.parameters()).dtype
    base = _given(recipe).quantizer
    config = SpectrimConfig(
        layers={name: compensated_entry(base, layer) for name, layer in layers.items()},
        split_experts=split_expert_names(result),
        untied=untied,
        provenance=_provenance(residual, ranks, recipe, dtype_of(model, recipe).itemsize),
    )
    attach_config(result, config)
    return result


def correction_figures(
    residual: Residual, ranks: dict[str, int], itemsize: int
) -> dict[str, Any]:
    """Return the bytes of the layers without biases, and predicted losses in nats per token."""
    shapes = residual.shapes
    figures: dict[str, Any] = {
        "bits_per_weight": bits_held(residual.bases, itemsize),
        "dense_bytes": itemsize * sum(out * inner for out, inner in shapes.values()),
        "base_bytes": sum(
            type(base).cost(shapes[name], base.options, itemsize)
            for name, base in residual.bases.items()
        ),
        "path_bytes": itemsize * sum(sum(shapes[name]) * rank for name, rank in ranks.items()),
    }
    found = residual.decomposition
    if found is not None and found.units != "own":
        curves = found.curves
        figures["predicted_loss_without_path"] = sum(float(c[0]) for c in curves.values())
        figures["predicted_loss"] = sum(float(curves[n][rank]) for n, rank in ranks.items())
    return figures


def _given(recipe: Recipe) -> CorrectionRecipe:
    return recipe.correction or CorrectionRecipe()


def needs_text(given: CorrectionRecipe) -> bool:
    if given.bits_per_weight is not None:
        return True
    has_path = given.rank > 0 if given.bytes is None else given.bytes > 0
    return has_path or bool(QUANTIZERS.get(given.quantizer).REQUIRES)


def _layer(residual: Residual, name: str, rank: int) -> CompensatedLinear:
    base = residual.bases[name]
    if rank == 0 or residual.decomposition is None:
        return CompensatedLinear(base, None, None)
    left, right = residual.decomposition.factors[name].truncated(rank)
    return CompensatedLinear.from_factors(base, left, right)


def _provenance(
    residual: Residual, ranks: dict[str, int], recipe: Recipe, itemsize: int
) -> dict[str, Any]:
    found = residual.decomposition
    calibration = {} if found is None else {"calibration": found.provenance}
    given = _given(recipe)
    chosen = {"chosen": shares(residual.bases)} if given.bits_per_weight is not None else {}
    return {
        "compensation": {
            "base": given.quantizer,
            "method": None if found is None or chosen else recipe.method,
            "allocation": None if found is None or chosen else recipe.allocation,
            **correction_figures(residual, ranks, itemsize),
            **chosen,
        },
        **calibration,
        "versions": versions(),
    }
