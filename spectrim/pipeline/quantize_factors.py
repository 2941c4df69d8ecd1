"""Quantize the factors of a compressed model, and its layers left dense.

    Q(left) Q(right) x,   Q by torchao or rtn, or in the metric of the loss by gptq

The ranks were chosen for the bytes of Q (`planning.layer_bytes`), and with the loss that its
rounding adds (`planning.quantization_error`).
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spectrim.checkpoint import SpectrimConfig, attach_config
from spectrim.checkpoint.config_entries import COMPENSATED, compensated_entry, inner_entry
from spectrim.errors import InputError, ModelError, NumericalWarning
from spectrim.layers.pivoted import PivotedLinear
from spectrim.layers.quantized import QUANTIZERS, CompensatedLinear, CompressedLinear
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import factored_layers, replace_layer
from spectrim.models.targets import find_targets
from spectrim.pipeline.recipe import QuantizationRecipe, Recipe
from spectrim.planning import Plan
from spectrim.planning.factor_rounding import round_factors
from spectrim.statistics import Calibration, LayerProblem, LayerStatistics


def quantize_factors(
    model: PreTrainedModel, plan: Plan, recipe: Recipe, calibration: Calibration | None = None
) -> PreTrainedModel:
    """Quantize the planned layers of `model` in place; it is compressed, in its final dtype.

    A recipe without quantization changes nothing. Raises InputError if the compressor is
    missing, or needs a calibration that is not given, ModelError for shapes that it does not
    support.
    """
    given = recipe.quantization
    if given is None:
        return model
    if needs_calibration(recipe) and calibration is None:
        raise InputError(f"'{given.backend}' needs calibration; quantize by torchao or rtn")
    if given.bits == 4 and any(isinstance(f, PivotedLinear) for _, f in factored_layers(model)):
        warnings.warn(
            "pivoted layers lose most to 4 bits, since their coefficients multiply what was "
            "rounded; plain factors (--layer lowrank) lose less",
            NumericalWarning,
            stacklevel=2,
        )
    return _quantize(model, _dense(plan), given, calibration)


def needs_calibration(recipe: Recipe) -> bool:
    """Return whether factors are quantized in the metric of the loss."""
    given = recipe.quantization
    return given is not None and bool(QUANTIZERS.get(given.backend).REQUIRES)


def quantize_all(model: PreTrainedModel, given: QuantizationRecipe) -> PreTrainedModel:
    """Quantize the factors of a compressed `model` and the dense layers of its blocks in place.

    Raises InputError if the compressor is missing, ModelError for unsupported shapes.
    """
    try:
        dense = [target.name for target in find_targets(model)]
    except ModelError:  # every layer is factored
        dense = []
    return _quantize(model, dense, given)


def update_config_ranks(model: PreTrainedModel) -> None:
    """Record the ranks of trained adapters in the config of a quantized model."""
    config: SpectrimConfig = model.config.quantization_config
    if config.inner is not None:
        config.inner = inner_entry(model, config.inner["base"])
    for name, entry in config.layers.items():
        if entry["kind"] == COMPENSATED:
            layer: Any = model.get_submodule(name)
            config.layers[name] = compensated_entry(entry["base"], layer)
    attach_config(model, config)


def _quantize(
    model: PreTrainedModel,
    dense: list[str],
    given: QuantizationRecipe,
    calibration: Calibration | None = None,
) -> PreTrainedModel:
    quantizer = given.backend, QUANTIZERS.options(given.backend, given.options)
    for name, layer in factored_layers(model):
        statistics = None if calibration is None else calibration.layer(name)
        for own, child in round_factors(name, layer, statistics, quantizer).items():
            setattr(layer, own, child.train(layer.training))
    config: SpectrimConfig = model.config.quantization_config
    for name in dense:
        statistics = None if calibration is None else calibration.layer(name)
        base = _compressed(name, model.get_submodule(name), given, statistics)
        layer_ = CompensatedLinear(base, None, None)
        replace_layer(model, name, layer_)
        config.layers[name] = compensated_entry(given.backend, layer_)
    config.inner = inner_entry(model, given.backend)
    config.provenance["quantisation"] = {"base": given.backend, **given.options}
    attach_config(model, config)
    return model


def check_quantization(recipe: Recipe) -> None:
    """Raise InputError, before the work, if the recipe's compressor cannot be used here."""
    if recipe.quantization is not None and not needs_calibration(recipe):
        side = recipe.quantization.group_size
        _compressed("a layer", nn.Linear(side, side, bias=False), recipe.quantization)


def _dense(plan: Plan) -> list[str]:
    """Return the modules that the plan left dense."""
    return [
        module
        for name, layer in plan.layers.items()
        if layer.rank is None
        for module in plan.members(name)
    ]


def _compressed(
    name: str,
    layer: nn.Module,
    given: QuantizationRecipe,
    statistics: LayerStatistics | None = None,
) -> CompressedLinear:
    problem = LayerProblem(name, get_weight(layer).detach(), get_bias(layer), statistics)
    options: Any = QUANTIZERS.options(given.backend, given.options)
    made = QUANTIZERS.get(given.backend).compress(problem, options)
    return made.train(layer.training)
