"""Quantize the factors of a compressed model, and its layers left dense.

    Q(left) Q(right) x,   Q by a compressor that needs no calibration (torchao, rtn)

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
from spectrim.statistics import LayerProblem


def quantize_factors(model: PreTrainedModel, plan: Plan, recipe: Recipe) -> PreTrainedModel:
    """Quantize the planned layers of `model` in place; it is compressed, in its final dtype.

    A recipe without quantization changes nothing. Raises InputError if the compressor is
    missing or needs text, ModelError for shapes that it does not support.
    """
    given = recipe.quantization
    if given is None:
        return model
    if QUANTIZERS.get(given.backend).REQUIRES:
        raise InputError(f"'{given.backend}' needs calibration; quantize by torchao or rtn")
    if given.bits == 4 and any(isinstance(f, PivotedLinear) for _, f in factored_layers(model)):
        warnings.warn(
            "pivoted layers lose most to 4 bits, since their coefficients multiply what was "
            "rounded; plain factors (--layer lowrank) lose less",
            NumericalWarning,
            stacklevel=2,
        )
    return _quantize(model, _dense(plan), given)


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
    model: PreTrainedModel, dense: list[str], given: QuantizationRecipe
) -> PreTrainedModel:
    for name, layer in factored_layers(model):
        for own, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                setattr(layer, own, _compressed(f"{name}.{own}", child, given))
    config: SpectrimConfig = model.config.quantization_config
    for name in dense:
        base = _compressed(name, model.get_submodule(name), given)
        layer_ = CompensatedLinear(base, None, None)
        replace_layer(model, name, layer_)
        config.layers[name] = compensated_entry(given.backend, layer_)
    config.inner = inner_entry(model, given.backend)
    config.provenance["quantisation"] = {"base": given.backend, **given.options}
    attach_config(model, config)
    return model


def check_quantization(recipe: Recipe) -> None:
    """Raise InputError, before the work, if the recipe's compressor cannot be used here."""
    if recipe.quantization is not None:
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


def _compressed(name: str, layer: nn.Module, given: QuantizationRecipe) -> CompressedLinear:
    problem = LayerProblem(name, get_weight(layer).detach(), get_bias(layer), None)
    options: Any = QUANTIZERS.options(given.backend, given.options)
    made = QUANTIZERS.get(given.backend).compress(problem, options)
    return made.train(layer.training)
