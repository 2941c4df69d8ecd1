"""What a quantised matrix takes, as an allocation counts it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import torch

from spectrim.allocation import Storage
from spectrim.layers.quantized import QUANTIZERS, quantizer_class
from spectrim.pipeline.recipe import Recipe


def storage_of(recipe: Recipe) -> Storage | None:
    """`ceil(bytes(rows, columns) / bytes of a number of the dense layer)`; None unless the
    recipe quantises. A recipe that states no dtype counts float32."""
    given = recipe.quantization
    if given is None:
        return None
    dtype = recipe.save_dtype or "float32"
    options = QUANTIZERS.options(given.backend, given.options)
    if "dtype" in {field.name for field in fields(options)}:
        options = replace(options, dtype=dtype)
    kind, itemsize = quantizer_class(given.backend), getattr(torch, dtype).itemsize
    return lambda rows, columns: -(-kind.cost((rows, columns), options, itemsize) // itemsize)


def rounded_for(recipe: Recipe) -> str:
    """All that the rounding of a layer depends on, but its weight; "" where none is rounded."""
    if recipe.quantization is None:
        return ""
    parts = [asdict(recipe.quantization), recipe.layer, recipe.layer_options]
    return json.dumps([*parts, recipe.save_dtype or "float32"], sort_keys=True)
