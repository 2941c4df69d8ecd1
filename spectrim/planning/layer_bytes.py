"""The stored size of a quantized matrix, as an allocation counts it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import torch

from spectrim.allocation import Storage
from spectrim.layers.quantized import QUANTIZERS, quantizer_class
from spectrim.planning.settings import PlanningSettings


def storage_of(settings: PlanningSettings) -> Storage | None:
    """Return `ceil(bytes(rows, columns) / bytes per number)`; None without a quantizer."""
    quantizer = settings.quantizer
    if quantizer is None:
        return None
    dtype = quantizer.dtype
    options = QUANTIZERS.options(quantizer.name, dict(quantizer.options))
    if "dtype" in {field.name for field in fields(options)}:
        options = replace(options, dtype=dtype)
    kind, itemsize = quantizer_class(quantizer.name), getattr(torch, dtype).itemsize
    return lambda rows, columns: -(-kind.cost((rows, columns), options, itemsize) // itemsize)


def rounded_for(settings: PlanningSettings) -> str:
    """Return all that determines a layer's quantization error besides its weight, as text."""
    if settings.quantizer is None:
        return ""
    parts = [asdict(settings.quantizer), settings.layer, dict(settings.layer_options)]
    return json.dumps(parts, sort_keys=True)
