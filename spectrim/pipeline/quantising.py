"""From a compressed model to one whose factors, and layers left dense, take fewer bits.

    Q(left) Q(right) x,   Q by a compressor that needs no calibration (torchao, rtn)

The ranks were chosen for the bytes of Q (`planning.storage`), and with what its rounding adds
to the loss (`curves.rounding`).
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spectrim.compressors import COMPRESSORS, CompensatedLinear, CompressedLinear
from spectrim.decompositions import LayerProblem
from spectrim.errors import InputError, ModelError, NumericalWarning
from spectrim.hub import SpectrimConfig, mark_compressed
from spectrim.hub.compensated import COMPENSATED, compensated_entry
from spectrim.hub.quantised import inner_of
from spectrim.layers.pivoted import PivotedLinear
from spectrim.planning import Plan
from spectrim.recipe import QuantisationRecipe, Recipe
from spectrim.surgery.adapters import bias_of, weight_of
from spectrim.surgery.rewrite import factored_layers, replace_layer
from spectrim.surgery.targets import find_targets


def quantise(model: PreTrainedModel, plan: Plan, recipe: Recipe) -> PreTrainedModel:
    """The planned layers of `model`, which is compressed and in its final dtype, in place.

    A recipe without quantisation changes nothing. Raises InputError where the compressor is
    missing or needs text, ModelError for shapes it does not take.
    """
    given = recipe.quantisation
    if given is None:
        return model
    if COMPRESSORS.get(given.base).REQUIRES:
        raise InputError(f"'{given.base}' needs calibration; quantise by torchao or rtn")
    if given.bits == 4 and any(isinstance(f, PivotedLinear) for _, f in factored_layers(model)):
        warnings.warn(
            "pivoted layers lose most to 4 bits, since their coefficients multiply what was "
            "rounded; plain factors (--layer lowrank) lose less",
            NumericalWarning,
            stacklevel=2,
        )
    return _quantised(model, _dense(plan), given)


def quantise_all(model: PreTrainedModel, given: QuantisationRecipe) -> PreTrainedModel:
    """The factors of a compressed `model`, and the dense layers of its blocks, in place.

    Raises InputError where the compressor is missing, ModelError for shapes it does not take.
    """
    try:
        dense = [target.name for target in find_targets(model)]
    except ModelError:  # every layer is factored
        dense = []
    return _quantised(model, dense, given)


def restate(model: PreTrainedModel) -> None:
    """In the config of a quantised model, the ranks of what was trained beside its weights."""
    config: SpectrimConfig = model.config.quantization_config
    if config.inner is not None:
        config.inner = inner_of(model, config.inner["base"])
    for name, entry in config.layers.items():
        if entry["kind"] == COMPENSATED:
            layer: Any = model.get_submodule(name)
            config.layers[name] = compensated_entry(entry["base"], layer)
    mark_compressed(model, config)


def _quantised(
    model: PreTrainedModel, dense: list[str], given: QuantisationRecipe
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
        config.layers[name] = compensated_entry(given.base, layer_)
    config.inner = inner_of(model, given.base)
    config.provenance["quantisation"] = {"base": given.base, **given.options}
    mark_compressed(model, config)
    return model


def check_quantisation(recipe: Recipe) -> None:
    """Before the work: raises InputError where the recipe's compressor cannot be used here."""
    if recipe.quantisation is not None:
        side = recipe.quantisation.group
        _compressed("a layer", nn.Linear(side, side, bias=False), recipe.quantisation)


def _dense(plan: Plan) -> list[str]:
    """Modules that the plan left dense."""
    return [
        module
        for name, layer in plan.layers.items()
        if layer.rank is None
        for module in plan.members(name)
    ]


def _compressed(name: str, layer: nn.Module, given: QuantisationRecipe) -> CompressedLinear:
    problem = LayerProblem(name, weight_of(layer).detach(), bias_of(layer), None)
    options: Any = COMPRESSORS.options(given.base, given.options)
    made = COMPRESSORS.get(given.base).compress(problem, options)
    return made.train(layer.training)
