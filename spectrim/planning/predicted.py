"""The quadratic model of the loss, for factors from any method.

    dL(r) = 1/2 tr(C_g D_r C_x D_r^T),   D_r = sum_{i>r} left_i right_i
          = 1/2 sum_{i,j>r} H_ij,        H = (left^T C_g left) * (right C_x right^T)

Nats per token of the text. For OBD H is diagonal and this is half the tail energy; for any
other method it prices the factors in the same units, so that methods and layers can be
compared. OBD's damped metrics are these statistics, so that H follows from the factors alone
(`GramDiagonals`) in a fraction of the operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.linalg.covariance import Covariance, ProjectedCovariance
from spectrim.linalg.spectrum import tail_energy, trailing_block_sums
from spectrim.linalg.truncated import Factors
from spectrim.statistics import LayerStatistics

ROUNDING = 1e-10
"""Relative to the curve's first value; below it is rounding, and no rank is worth its cost."""
NEEDED = ("input_covariance", "gradient_covariance")


def predicted_curve(factors: Factors, statistics: LayerStatistics | None) -> Tensor:
    """Return the predicted loss increase at rank 0 .. k, shape (k + 1,).

    Without both covariances it is the tail energy in the method's own units, which orders
    ranks within a layer but is not a loss.
    """
    if statistics is None or not all(name in statistics for name in NEEDED):
        return tail_energy(factors.spectrum)
    if factors.solved is not None and factors.solved.statistics == NEEDED[::-1]:
        outputs, inputs = factors.solved.grams(factors)
        if factors.bias_shift is not None:
            inputs = inputs - factors.bias_shift[:, None] * factors.bias_shift
    else:
        inputs, outputs = _inputs(factors, statistics), _outputs(factors, statistics)
    curve = 0.5 * statistics.share * trailing_block_sums(outputs * inputs)
    return torch.where(curve > ROUNDING * curve[0].clamp_min(0), curve, 0.0)


def _outputs(factors: Factors, statistics: LayerStatistics) -> Tensor:
    """Return left^T C_g left, for a tall layer also from C_g projected by W = left right."""
    covariance = statistics["gradient_covariance"]
    if isinstance(covariance, ProjectedCovariance):
        return covariance.beside(factors.right.T)
    left = factors.left.double()
    return left.T @ covariance @ left


def _inputs(factors: Factors, statistics: LayerStatistics) -> Tensor:
    """Return right C_x right^T, minus what a bias absorbs of it."""
    right, covariance = factors.right.double(), statistics["input_covariance"]
    if isinstance(covariance, ProjectedCovariance):
        return covariance.beside(factors.left)
    if factors.bias_shift is None:
        return right @ covariance @ right.T
    if isinstance(covariance, Covariance) and "input_mean" in statistics:
        return right @ covariance.centered(statistics["input_mean"]) @ right.T
    return right @ covariance @ right.T - factors.bias_shift[:, None] * factors.bias_shift


def first_order_effects(factors: Factors, statistics: LayerStatistics) -> Tensor:
    """Return the first-order change of the loss when component i alone is dropped, shape (k,).

        -left_i^T G right_i^T,   G = E[g x^T]

    Nats per token of the text; what a bias absorbs is not subtracted.
    """
    seen = factors.left.double().T @ statistics["mean_gradient"]
    effects = torch.linalg.vecdot(seen, factors.right.double())
    return -statistics.share * effects
