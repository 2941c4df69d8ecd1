"""Factors stored by columns, on a CPU.

    y = W x,   W (out, in)

A CPU multiplies one token with W by reading it once. By rows these are `out` dot products of
length `in`; by columns it adds `out` numbers at a time: the longer side is to be run along. One
core, float32, one token, `benchmarks/matrix_vector.py`: by columns (49152, 576) is 1.74 times
as fast, (1536, 576) 1.39, (1236, 300) 1.63, (576, 576) 1.02, (300, 576) 0.77, (279, 768) 0.69,
(430, 1536) 0.72; no difference for many tokens. A weight keeps its shape and its values; only
their order in memory changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.layers import CompactLinear, FactoredLinear

SHORT = 0
"""Rows up to this length are turned even where the columns are shorter: none is worth it."""
_DTYPES = (torch.float32, torch.float64)
"""Those of the BLAS library; half precision goes another way, which has its own layouts."""


def faster_by_columns(weight: Tensor) -> bool:
    """Return whether a weight (out, in) is faster by columns."""
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        return False
    out_features, in_features = weight.shape
    return in_features <= SHORT or out_features > in_features


def put_in_best_order(layer: FactoredLinear) -> None:
    for child in _factors(layer):
        _put(child)


def put_dense_in_best_order(model: nn.Module) -> None:
    """Turn the dense layers of a model, of which the output embedding is mostly the largest.

    A table that is tied to it is turned as well: looking up a token takes longer then, by
    microseconds.
    """
    for child in _dense(model):
        _put(child)


@torch.no_grad()
def store_by_rows(layer: FactoredLinear) -> None:
    with torch.inference_mode(False):
        for child in _factors(layer):
            child.weight.data = child.weight.data.contiguous()


@torch.no_grad()
def store_dense_by_rows(model: nn.Module) -> None:
    with torch.inference_mode(False):
        for child in _dense(model):
            child.weight.data = child.weight.data.contiguous()


@torch.no_grad()
def _put(child: nn.Linear) -> None:
    with torch.inference_mode(False):
        if faster_by_columns(child.weight):
            child.weight.data = child.weight.data.T.contiguous().T


def _factors(layer: FactoredLinear) -> list[nn.Linear]:
    return [c for c in layer.children() if isinstance(c, nn.Linear) and type(c) is nn.Linear]


def _dense(model: nn.Module) -> list[nn.Linear]:
    """Return the dense layers that are part of no compressed one."""
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, CompactLinear)
        for part in module.modules()
    }
    return [m for m in model.modules() if type(m) is nn.Linear and id(m) not in inside]
