"""Models of a given shape with random weights, dense and factored, for timing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from spectrim.allocation import ALLOCATORS, TIMED, AllocationRequest, LayerCurve
from spectrim.errors import InputError, UnknownNameError
from spectrim.layers import FactoredLinear, layer_class
from spectrim.layers.pivoted import PivotedLinear, pack_bits
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.linear import get_bias, get_shape
from spectrim.models.replace import replace_layer
from spectrim.models.targets import Target, find_targets
from spectrim.runtime.files import is_file, read_mapping

SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "llama-100m": {
        "model_type": "llama",
        "vocab_size": 16384,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "bert-base": {"model_type": "bert", "attention_probs_dropout_prob": 0.0},
}
"""Configurations by the name of a model that has that shape."""


def random_model(
    shape: str,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    blocks: int | None = None,
) -> PreTrainedModel:
    """Return an untrained model of a name in `SHAPES`, or of a configuration file
    (config.json).

    blocks: number of blocks, default all of the shape. Raises UnknownNameError, InputError for
    a configuration unknown to transformers, or for no block.
    """
    config = _config(shape)
    if blocks is not None:
        if blocks < 1:
            raise InputError(f"{blocks} blocks: at least 1 is needed")
        config.num_hidden_layers = blocks
    encoder = getattr(config, "is_decoder", None) is False  # it could decode, but does not
    causal = type(config) in AutoModelForCausalLM._model_mapping and not encoder
    builder = AutoModelForCausalLM if causal else AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with device:
            model = builder.from_config(config, dtype=dtype)
    return model.to(device).eval()


def factorize_randomly(
    model: PreTrainedModel, keep: float, kind: str, multiple: int = 1, seed: int = 0
) -> PreTrainedModel:
    """Replace the model's layers in place by random ones that keep `keep` of the weights.

    Raises InputError for a layer type whose time depends on more than its rank.
    """
    split_experts(model, fused_expert_names(model))
    targets = find_targets(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, rank in _uniform_ranks(targets, keep, kind, multiple).items():
            if rank is not None:
                module = model.get_submodule(name)
                bias = get_bias(module) is not None
                with next(module.parameters()).device:
                    layer = random_layer(get_shape(module), kind, rank, bias)
                replace_layer(model, name, layer)
    return model


def _config(shape: str) -> Any:
    if shape in SHAPES:
        values = dict(SHAPES[shape])
    elif is_file(Path(shape)):
        values = dict(read_mapping(Path(shape)))
    else:
        raise UnknownNameError("shape", shape, [*SHAPES, "a config.json"])
    model_type = values.pop("model_type", None)
    try:
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{shape}: no model of type {model_type!r}: {error}") from error


def _uniform_ranks(
    targets: list[Target], keep: float, kind: str, multiple: int
) -> dict[str, int | None]:
    curves = tuple(
        LayerCurve(t.name, t.shape, np.zeros(min(t.shape) + 1), np.ones(min(t.shape)))
        for t in targets
    )
    request = AllocationRequest(curves, keep, kind, multiple)
    uniform = ALLOCATORS.get("uniform")
    return uniform.allocate(request, ALLOCATORS.options("uniform", {}))


def random_layer(
    shape: tuple[int, int], kind: str, rank: int, bias: bool = False
) -> FactoredLinear:
    """Return a layer of weight shape (out, in), with evenly spaced pivots.

    The gather is then as slow as for any pivots. Raises InputError for a layer type whose time
    depends on more than its rank.
    """
    if not is_timed(kind):
        raise InputError(f"random layers are of kind lowrank or pivoted, not '{kind}'")
    layer = layer_class(kind).empty(shape, rank, bias)
    if isinstance(layer, PivotedLinear):
        marked = torch.zeros(layer.out_features, dtype=torch.bool)
        marked[torch.linspace(0, layer.out_features - 1, rank).round().long()] = True
        layer.pivot_mask.copy_(pack_bits(marked))
    return layer


def is_timed(kind: str) -> bool:
    """Return whether random layers of a kind time like trained ones, by rank alone."""
    return kind in TIMED
