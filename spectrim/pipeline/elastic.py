"""One model of all sizes: the components of every layer in the order of removal.

plan of the largest size -> components of every layer -> config with the order
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.allocation import NestedSizes
from spectrim.checkpoint import (
    SpectrimConfig,
    attach_config,
    elastic_entry,
    sizes_of,
    stored_layer,
)
from spectrim.errors import InputError
from spectrim.layers import ElasticLinear
from spectrim.layers.quantized import (
    COLUMN_QUANTIZER,
    QUANTIZERS,
    ROW_QUANTIZER,
    QuantizedElasticLinear,
)
from spectrim.models.experts import split_expert_names
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import other_names
from spectrim.pipeline.recipe import QuantizationRecipe, Recipe
from spectrim.pipeline.replace import (
    provenance_of,
    shared_copy,
    untie_head,
)
from spectrim.planning import Decomposition, Plan
from spectrim.planning.nested import nested_plan, nested_sizes
from spectrim.statistics import LayerProblem
from spectrim.training.sampled_sizes import SampledSizes


def plan_elastic(decomposition: Decomposition, recipe: Recipe) -> tuple[NestedSizes, Plan]:
    """Return all sizes of a recipe with `elastic`, and the plan of the largest.

    Raises InputError for sizes that no ranks meet, or a method whose biases depend on the rank.
    """
    elastic = recipe.elastic
    assert elastic is not None
    settings = recipe.planning.at_budget(elastic.largest)
    shifted = [n for n, f in decomposition.factors.items() if f.bias_shift is not None]
    if shifted:
        raise InputError(
            f"the bias of {shifted[0]} depends on its rank by method '{recipe.method}', so it "
            "has no prefix for every size; choose a method such as obd"
        )
    sizes = nested_sizes(decomposition, settings, elastic.smallest)
    return sizes, nested_plan(decomposition, settings, sizes, elastic.largest)


def at_largest(recipe: Recipe) -> Recipe:
    """Return the recipe with the largest size of its `elastic` as the budget."""
    elastic = recipe.elastic
    return recipe if elastic is None else recipe.with_changes(budget=elastic.largest)


def sampled_sizes(sizes: NestedSizes) -> SampledSizes:
    """Return the sizes as a refinement draws them."""
    layers = [(name, *asdict(layer).values()) for name, layer in sizes.layers.items()]
    key = [sizes.kind, sizes.smallest, sizes.largest, sizes.multiple, layers, sizes.steps]
    return SampledSizes(sizes.smallest, sizes.largest, sizes.ranks, key)


def hold_sizes(
    model: PreTrainedModel,
    decomposition: Decomposition,
    sizes: NestedSizes,
    plan: Plan,
) -> PreTrainedModel:
    """Return a copy of `model` whose layers hold all `sizes`, computing at the largest.

    Args:
        plan: of the largest size, for the provenance.
    """
    names = [name for name, layer in sizes.layers.items() if layer.components]
    if repeated := [name for name in names if other_names(model, name)]:
        raise InputError(
            f"{repeated[0]} is used at several depths of the model, which an elastic "
            "checkpoint cannot store; compress it to one budget"
        )
    result: Any = shared_copy(model)
    untied = untie_head(result, names)
    for name in names:
        _hold(result, name, decomposition, sizes)
    result.config.dtype = next(result.parameters()).dtype
    entry = elastic_entry(sizes, _other_weights(result, names))
    attach_config(
        result,
        SpectrimConfig(
            split_experts=split_expert_names(result),
            untied=untied,
            provenance=provenance_of(plan),
            elastic=entry,
        ),
    )
    return result


def quantize_sizes(model: PreTrainedModel, given: QuantizationRecipe) -> PreTrainedModel:
    """Quantize all sizes of a model in its final dtype, in place: components one by one.

    Raises NumericalError for values that exceed the range of float16 scales.
    """
    whole: Any = model
    config: SpectrimConfig = whole.config.quantization_config
    assert config.elastic is not None
    options = QUANTIZERS.options(ROW_QUANTIZER, given.options)
    for name, layer in sizes_of(config.elastic).layers.items():
        old = whole.get_submodule(name)
        held = old if isinstance(old, ElasticLinear) else None
        factors, base, bias = None, None, get_bias(old)
        if held is not None and layer.components:
            left, right = held.factors(layer.components)
            factors = (
                _rounded(COLUMN_QUANTIZER, name, left, options),
                _rounded(ROW_QUANTIZER, name, right, options),
            )
        if layer.has_dense:
            weight = get_weight(old) if held is None else held.dense_weight()
            base = _rounded(ROW_QUANTIZER, name, weight, options)
        new = QuantizedElasticLinear(factors, base, bias)
        whole.set_submodule(name, new.train(old.training))
    dtype = str(whole.dtype).removeprefix("torch.")
    stated = {"options": asdict(options), "dtype": dtype}
    config.elastic = {**config.elastic, "quantizer": stated}
    config.provenance["quantisation"] = {"base": ROW_QUANTIZER, **asdict(options)}
    attach_config(whole, config)
    return model


def _rounded(quantizer: str, name: str, weight: Tensor, options: Any) -> Any:
    problem = LayerProblem(name, weight.detach(), None, None)
    return QUANTIZERS.get(quantizer).compress(problem, options)


def _hold(
    model: PreTrainedModel, name: str, decomposition: Decomposition, sizes: NestedSizes
) -> None:
    layer, old = sizes.layers[name], model.get_submodule(name)
    left, right = decomposition.factors[name].balanced().truncated(layer.components)
    rows = torch.cat([left.T, right], dim=1).to(next(old.parameters()))
    weight = old.weight if layer.has_dense else None
    new = stored_layer(old, rows, weight, old.bias)
    model.set_submodule(name, new.train(old.training))


def _other_weights(model: PreTrainedModel, names: list[str]) -> int:
    """Return the numbers that are stored besides the elastic layers' weights."""
    inside = {f"{name}.{part}" for name in names for part in ("components", "weight")}
    return sum(p.numel() for name, p in model.named_parameters() if name not in inside)
