"""Statistics: sums over tokens that decompositions and allocations are made from.

One file each. A statistic module declares

    SIDE             "input" (one per group of layers that share an input), or "layer"
    NEEDS_GRADIENT   whether it needs the gradient at the layer's output
    empty(shape)     its state as zeros; shape is the weight's (out, in)
    update(state, tokens)   adds one batch, in place
    finish(state, count)    what a method reads, per token, from the summed state

and, where it needs the gradient and nothing else of a token,

    GRADIENT_ONLY = True    so that inputs and outputs are not kept until the backward pass

and, where the state is a covariance that may be kept in fewer numbers (`CovarianceFormat`),

    width(shape)            its width; `empty(shape, form)` then takes a form

States are dictionaries of float64 tensors that merge by addition. Tokens may have weights:
`update` sums `tokens.weighted` rows, and outer products of `tokens.root_weighted` ones.
"""

from __future__ import annotations

from spectrim.statistics._covariance import FULL, CovarianceFormat, Kind, largest_format
from spectrim.statistics._io import load_calibration, save_calibration
from spectrim.statistics._means import (
    Mean,
    covariance_drift,
    merge_calibrations,
    relative_distance,
)
from spectrim.statistics._parts import concat, select
from spectrim.statistics._problem import LayerProblem
from spectrim.statistics._registry import STATISTICS
from spectrim.statistics._result import Calibration, LayerStatistics, PooledStatistics, State
from spectrim.statistics._shrinkage import ENOUGH, FEW_TOKENS, is_few, shrink, with_shrinkage
from spectrim.statistics._stored import (
    Parts,
    StoredStates,
    open_calibration,
    stored_calibration,
)
from spectrim.statistics._table import TableStatistics, TableSums
from spectrim.statistics._tokens import LayerTokens, at_least_float32, sum_of_outer_products

__all__ = [
    "ENOUGH",
    "FEW_TOKENS",
    "FULL",
    "STATISTICS",
    "Calibration",
    "CovarianceFormat",
    "Kind",
    "LayerProblem",
    "LayerStatistics",
    "LayerTokens",
    "Mean",
    "Parts",
    "PooledStatistics",
    "State",
    "StoredStates",
    "TableStatistics",
    "TableSums",
    "at_least_float32",
    "concat",
    "covariance_drift",
    "is_few",
    "largest_format",
    "load_calibration",
    "merge_calibrations",
    "open_calibration",
    "relative_distance",
    "save_calibration",
    "select",
    "shrink",
    "stored_calibration",
    "sum_of_outer_products",
    "with_shrinkage",
]
