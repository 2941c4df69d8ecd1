"""Quantizers and other compressors that store a weight in fewer bytes. One file each.

A module declares `REQUIRES` (statistics), `REFERENCE`, optionally a frozen dataclass
`Options`, and

    LAYER                        the `CompressedLinear` that it stores a layer in
    compress(problem, options)   -> a LAYER with the weight and bias of a `LayerProblem`

A low-rank path beside it corrects part of the error: `CompensatedLinear`.
"""

from __future__ import annotations

from spectrim.layers.quantized._base import Adapter, CompressedLinear
from spectrim.layers.quantized._with_correction import CompensatedLinear
from spectrim.registry import Registry

QUANTIZERS = Registry("quantizer", "spectrim.layers.quantized")


def quantizer_class(name: str) -> type[CompressedLinear]:
    """Return the `CompressedLinear` subclass of a compressor. Raises UnknownNameError."""
    return QUANTIZERS.get(name).LAYER


__all__ = [
    "QUANTIZERS",
    "Adapter",
    "CompensatedLinear",
    "CompressedLinear",
    "quantizer_class",
]
