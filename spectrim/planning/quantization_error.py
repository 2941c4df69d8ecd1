"""The loss of rounding the stored matrices, by the same quadratic model.

    dL_Q(r) = 1/2 tr(C_g E_r C_x E_r^T),   E_r = Q(W_r) - W_r

Q rounds each stored matrix of a layer of rank r, so for pivoted layers E_r includes the
products with their coefficients. It is added to the loss of cutting: the rounding error of what
is kept is assumed uncorrelated with what was cut. Computed at a few ranks, linear in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.layers import LAYERS, layer_class
from spectrim.layers.quantized import QUANTIZERS
from spectrim.linalg.truncated import Factors
from spectrim.planning import SHARED, Decomposition
from spectrim.planning.factor_rounding import round_factors
from spectrim.planning.layer_bytes import rounded_for
from spectrim.planning.rank_multiples import multiple_for
from spectrim.planning.settings import FactorQuantizer, PlanningSettings
from spectrim.statistics import Calibration, LayerProblem, LayerStatistics

SHARES = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 15 / 16)
"""Of the full rank, where rounding is tried; beyond the last it is taken to stay."""
Rounded = Callable[[Tensor], Tensor]


def with_rounding(
    calibration: Calibration,
    decomposition: Decomposition,
    settings: PlanningSettings,
    track: Any = iter,
) -> Decomposition:
    """Return the decomposition with the predicted loss of quantizing each rank's factors.

    Unchanged without a quantizer, or if losses are not in nats. Ranks whose matrices the
    quantizer does not support are skipped. Raises InputError if the quantizer is missing.
    """
    if settings.quantizer is None or decomposition.units == "own":
        return decomposition
    multiple = multiple_for(settings.rank_multiple, decomposition.shapes.values())
    found = {}
    for name in track(list(decomposition.shapes)):
        parts = decomposition.expand_groups({name: 1})[0]
        kind = SHARED if name in decomposition.groups else settings.layer
        most = len(decomposition.curves[name]) - 1
        losses = {}
        for rank in (0, *_ranks(most, multiple)):
            tried = [
                _loss(f, calibration.layer(n), rank, kind, settings) for n, f in parts.items()
            ]
            losses[rank] = None if None in tried else sum(filter(None, tried))
        found[name] = _between(losses, most)
    return replace(decomposition, rounding=found, rounded_for=rounded_for(settings))


def _ranks(most: int, multiple: int) -> list[int]:
    """Return the ranks to try, ascending, of those that a plan can choose."""
    rounded = {max(1, round(share * most / multiple)) * multiple for share in SHARES}
    return sorted(rank for rank in rounded if rank <= most)


def _between(losses: dict[int, float | None], most: int) -> Tensor:
    """Return (most + 1,): at 0 the dense layer, then every rank, interpolated linearly."""
    known = {rank: loss for rank, loss in losses.items() if loss is not None and rank > 0}
    at, values = list(known) or [1], list(known.values()) or [0.0]
    ranks = np.interp(np.arange(1, most + 1), at, values)
    return torch.tensor([losses[0] or 0.0, *ranks], dtype=torch.float64)


def _loss(
    factors: Factors,
    statistics: LayerStatistics,
    rank: int,
    kind: str,
    settings: PlanningSettings,
) -> float | None:
    """Return the loss at `rank`, 0 for the dense layer; None for unsupported shapes."""
    try:
        error = _error(factors, statistics, rank, kind, settings)
    except ModelError:
        return None
    outputs, inputs = statistics["gradient_covariance"], statistics["input_covariance"]
    return float(0.5 * statistics.share * ((outputs @ error) * (error @ inputs)).sum())


def _error(
    factors: Factors,
    statistics: LayerStatistics,
    rank: int,
    kind: str,
    settings: PlanningSettings,
) -> Tensor:
    """Return Q(W_r) - W_r (out, in), float64."""
    rounded = _rounder(settings, statistics)
    if rank == 0:
        weight = _stored(factors.left @ factors.right, settings)
        return rounded(weight) - weight
    layer = _layer(factors, rank, kind, settings)
    if QUANTIZERS.get(_quantizer(settings).name).REQUIRES:
        return _error_in_metric(layer, statistics, settings)
    for child in _children(layer):
        child.weight.data = _stored(child.weight.detach(), settings)
    before = layer.dense()[0]
    for child in _children(layer):
        child.weight.data = rounded(child.weight.detach())
    return layer.dense()[0] - before


def _error_in_metric(
    layer: Any, statistics: LayerStatistics, settings: PlanningSettings
) -> Tensor:
    """Return the error of a quantizer that reads the statistics of both sides."""
    layer = layer.to(getattr(torch, _quantizer(settings).dtype))
    before = layer.dense()[0]
    rounded = round_factors("a layer", layer, statistics, _named(settings))
    layer = layer.double()
    for name, child in rounded.items():
        layer.get_submodule(name).weight.data = child.dense()[0]
    return layer.dense()[0] - before


def _layer(factors: Factors, rank: int, kind: str, settings: PlanningSettings) -> Any:
    if kind == SHARED:
        return layer_class("lowrank").from_full(factors, rank, None, None)
    options = LAYERS.options(kind, dict(settings.layer_options))
    return layer_class(kind).from_full(factors, rank, None, options)


def _children(layer: nn.Module) -> Sequence[Any]:
    children = [child for child in layer.children() if isinstance(child, nn.Linear)]
    return [child for child in children if child.weight.numel()]


def _stored(weight: Tensor, settings: PlanningSettings) -> Tensor:
    """Return the weight in the dtype that is rounded, as float64."""
    return weight.to(getattr(torch, _quantizer(settings).dtype)).double()


def _quantizer(settings: PlanningSettings) -> FactorQuantizer:
    assert settings.quantizer is not None
    return settings.quantizer


def _named(settings: PlanningSettings) -> tuple[str, Any]:
    quantizer = _quantizer(settings)
    return quantizer.name, QUANTIZERS.options(quantizer.name, dict(quantizer.options))


def _rounder(settings: PlanningSettings, statistics: LayerStatistics) -> Rounded:
    name, options = _named(settings)
    dtype = getattr(torch, _quantizer(settings).dtype)

    def rounded(weight: Tensor) -> Tensor:
        problem = LayerProblem("a layer", weight.to(dtype), None, statistics)
        return QUANTIZERS.get(name).compress(problem, options).dense()[0]

    return rounded
