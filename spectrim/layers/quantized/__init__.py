"""Quantizers and other compressors that store a weight in fewer bytes. One file each.

A module declares `REQUIRES` (statistics), `REFERENCE`, optionally a frozen dataclass
`Options`, and

    LAYER                        the `CompressedLinear` that it stores a layer in
    compress(problem, options)   -> a LAYER with the weight and bias of a `LayerProblem`

A low-rank path beside it corrects part of the error: `CompensatedLinear`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from spectrim.layers.quantized._base import Adapter, CompressedLinear
from spectrim.layers.quantized._elastic import (
    COLUMN_QUANTIZER,
    ELASTIC_PARTS,
    ROW_QUANTIZER,
    QuantizedElasticLinear,
    cut_quantized,
    empty_quantized,
    held_by,
)
from spectrim.layers.quantized._with_correction import CompensatedLinear
from spectrim.registry import Registry

QUANTIZERS = Registry("quantizer", "spectrim.layers.quantized")


def storage_in(name: str, given: Mapping[str, Any], dtype: str) -> Callable[[int, int], int]:
    """Return `ceil(bytes(rows, columns) / bytes per number of dtype)` of a quantizer."""
    options = QUANTIZERS.options(name, dict(given))
    if "dtype" in {field.name for field in fields(options)}:
        options = replace(options, dtype=dtype)
    kind, itemsize = quantizer_class(name), getattr(torch, dtype).itemsize
    return lambda rows, columns: -(-kind.cost((rows, columns), options, itemsize) // itemsize)


def quantizer_class(name: str) -> type[CompressedLinear]:
    """Return the `CompressedLinear` subclass of a compressor. Raises UnknownNameError."""
    return QUANTIZERS.get(name).LAYER


__all__ = [
    "COLUMN_QUANTIZER",
    "ELASTIC_PARTS",
    "QUANTIZERS",
    "ROW_QUANTIZER",
    "Adapter",
    "CompensatedLinear",
    "CompressedLinear",
    "QuantizedElasticLinear",
    "cut_quantized",
    "empty_quantized",
    "held_by",
    "quantizer_class",
    "storage_in",
]
