"""Layer types: what a factored linear layer stores and how it multiplies. One file each."""

from __future__ import annotations

from spectrim.layers._base import CompactLinear, FactoredLinear
from spectrim.layers._elastic import ElasticLinear, split_components
from spectrim.layers._embedding import FactoredEmbedding, FactoredHead
from spectrim.registry import Registry

LAYERS = Registry("layer", "spectrim.layers")


def layer_class(name: str) -> type[FactoredLinear]:
    """Return the `FactoredLinear` subclass of a layer type. Raises UnknownNameError."""
    return LAYERS.get(name).LAYER


__all__ = [
    "LAYERS",
    "CompactLinear",
    "ElasticLinear",
    "FactoredEmbedding",
    "FactoredHead",
    "FactoredLinear",
    "layer_class",
    "split_components",
]
