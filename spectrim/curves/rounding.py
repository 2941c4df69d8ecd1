"""What rounding the stored matrices adds to the loss, by the same quadratic model.

    dL_Q(r) = 1/2 tr(C_g E_r C_x E_r^T),   E_r = Q(W_r) - W_r

Q rounds each stored matrix of a layer of rank r, so for pivoted layers E_r holds what their
coefficients multiply. To the loss of cutting it is added: the rounding of what is kept is taken
to be uncorrelated with what was cut. Computed at a few ranks, linear in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.calibration import Calibration, LayerStatistics
from spectrim.compressors import COMPRESSORS
from spectrim.decompositions import LayerProblem
from spectrim.layers import LAYERS, layer_class
from spectrim.linalg.truncated import Factors
from spectrim.planning import SHARED, Decomposition
from spectrim.planning.storage import rounded_for
from spectrim.recipe import Recipe

SHARES = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Of the full rank, where rounding is tried."""
Rounded = Callable[[Tensor], Tensor]


def with_rounding(
    calibration: Calibration, decomposition: Decomposition, recipe: Recipe, track: Any = iter
) -> Decomposition:
    """The decomposition with `rounding` for the recipe's bits and layer kind, in place of what
    it knew; unchanged where nothing is rounded or prices are not in nats.

    Raises InputError where the compressor is missing, ModelError for shapes it does not take.
    """
    if recipe.quantisation is None or decomposition.units == "own":
        return decomposition
    multiple = recipe.quantisation.multiple
    found = {}
    for name in track(list(decomposition.shapes)):
        parts = decomposition.by_module({name: 1})[0]
        kind = SHARED if name in decomposition.groups else recipe.layer
        at = _ranks(min(factors.max_rank for factors in parts.values()), multiple)
        losses = [
            sum(_loss(f, calibration.layer(n), r, kind, recipe) for n, f in parts.items())
            for r in [0, *at]
        ]
        most = len(decomposition.curves[name]) - 1
        between = np.interp(np.arange(1, most + 1), at or [1], losses[1:] or [0.0])
        found[name] = torch.tensor([losses[0], *between], dtype=torch.float64)
    decomposition.rounding = found
    decomposition.rounded_for = rounded_for(recipe)
    return decomposition


def _ranks(most: int, multiple: int) -> list[int]:
    """Ranks to try, ascending, multiples of what the kernel reads."""
    rounded = {max(1, round(share * most / multiple)) * multiple for share in SHARES}
    return sorted(rank for rank in rounded if rank <= most)


def _loss(
    factors: Factors, statistics: LayerStatistics, rank: int, kind: str, recipe: Recipe
) -> float:
    """Of one layer at `rank`; 0 stands for the dense layer."""
    rounded = _rounder(recipe)
    if rank == 0:
        weight = _stored(factors.left @ factors.right, recipe)
        error = rounded(weight) - weight
    else:
        layer = _layer(factors, rank, kind, recipe)
        for child in _children(layer):
            child.weight.data = _stored(child.weight.detach(), recipe)
        before = layer.dense()[0]
        for child in _children(layer):
            child.weight.data = rounded(child.weight.detach())
        error = layer.dense()[0] - before
    outputs, inputs = statistics["gradient_covariance"], statistics["input_covariance"]
    return float(0.5 * statistics.share * ((outputs @ error) * (error @ inputs)).sum())


def _layer(factors: Factors, rank: int, kind: str, recipe: Recipe) -> Any:
    if kind == SHARED:
        return layer_class("lowrank").from_full(factors, rank, None, None)
    options = LAYERS.options(kind, recipe.layer_options)
    return layer_class(kind).from_full(factors, rank, None, options)


def _children(layer: nn.Module) -> Sequence[Any]:
    return [child for child in layer.children() if isinstance(child, nn.Linear)]


def _stored(weight: Tensor, recipe: Recipe) -> Tensor:
    """In the numbers that are rounded, as float64."""
    return weight.to(getattr(torch, recipe.save_dtype or "float32")).double()


def _rounder(recipe: Recipe) -> Rounded:
    given = recipe.quantisation
    assert given is not None
    options = COMPRESSORS.options(given.base, given.options)
    dtype = getattr(torch, recipe.save_dtype or "float32")

    def rounded(weight: Tensor) -> Tensor:
        problem = LayerProblem("a layer", weight.to(dtype), None, None)
        return COMPRESSORS.get(given.base).compress(problem, options).dense()[0]

    return rounded
