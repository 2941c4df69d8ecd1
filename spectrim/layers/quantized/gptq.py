"""GPTQ: `min || L_out^T (W - Q) L_in ||_F` over the grid of rtn, by error feedback.

    C_x = L_in L_in^T (in, in),   C_g = L_out L_out^T (out, out)

Columns are rounded in order, and the error of each moves to the columns not yet rounded, by
the inverse Cholesky factor of the damped C_x. One-sided, the rows are independent, and L_out
weighs none of their choices. Two-sided, errors also move to the rows not yet rounded, by that
of the damped C_g; half the squared norm is the loss of rounding in nats per token. The layer
is stored and loaded as by `rtn`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from spectrim.layers.quantized import rtn
from spectrim.layers.quantized._error_feedback import (
    Rounded,
    inverse_factor,
    round_with_feedback,
)
from spectrim.layers.quantized.rtn import RtnLinear
from spectrim.linalg.covariance import Covariance
from spectrim.linalg.psd import check_covariance, check_finite, mean_diagonal

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES = ("input_covariance", "gradient_covariance")
REFERENCE = "Frantar et al., 2022, arXiv:2210.17323"
CHOICES = rtn.CHOICES


@dataclass(frozen=True)
class Options(rtn.Options):
    """Options of rtn, and of the feedback.

    damping: of both covariances, relative to their mean diagonal. two_sided: feedback across
    rows as well. act_order: channels of large diagonal first, whole groups at a time. grid:
    of the group's range, or the shrunk range of least weighted error.
    """

    damping: Annotated[float, Field(ge=0, le=1)] = 1e-2
    two_sided: bool = True
    act_order: bool = True
    grid: Literal["range", "error"] = "error"


def compress(problem: QuantizationProblem, options: Options) -> RtnLinear:
    """Quantize a weight.

    Raises NumericalError if it or a covariance is not finite, a covariance is zero, or the
    weight exceeds the range of float16 scales; InputError for a covariance that was summed
    through the weight.
    """
    weight = problem.weight.detach().float()
    check_finite(weight, f"the weight of {problem.name}")
    outputs = dense(problem, "gradient_covariance") if options.two_sided else None
    inputs = dense(problem, "input_covariance")
    rounded = round_matrix(weight, inputs, outputs, options, problem.name)
    grid, stored = (
        (rounded.scales, rounded.zeros),
        replace(rounded.options, group=options.group),
    )
    return RtnLinear.from_codes(rounded.codes, grid, problem.bias, stored)


def round_matrix(
    weight: Tensor, inputs: Tensor, outputs: Tensor | None, options: Options, name: str
) -> Rounded:
    """Return weight (out, in) rounded in the metric of its covariances (in, in), (out, out).

    Without `outputs` the rows are independent. Raises NumericalError for a covariance that
    has no factor, and for scales beyond float16.
    """
    grid = rtn.Options(options.bits, min(options.group, weight.shape[1]), options.scheme)
    padded, inputs = _whole_groups(weight, inputs, grid.group)
    columns = _column_order(inputs.diagonal(), grid.group, options)
    upper = _factor(inputs, columns, options, f"input covariance of {name}")
    rows, outer = _rows(weight, outputs, options, name)
    ordered = padded[rows][:, columns]
    importance = upper.diagonal().pow(-2) * (columns < weight.shape[1])
    searched = importance if options.grid == "error" else None
    rounded = round_with_feedback(ordered, upper, outer, grid, searched)
    check_finite(rounded.scales, f"float16 scales of {name}")
    result = _restored(rounded, rows, columns)
    return replace(result, codes=result.codes[:, : weight.shape[1]])


def _rows(
    weight: Tensor, outputs: Tensor | None, options: Options, name: str
) -> tuple[Tensor, Tensor | None]:
    """Return the order of the rows and the factor of C_g in it, if errors move across rows."""
    if outputs is None:
        return torch.arange(len(weight), device=weight.device), None
    rows = _column_order(outputs.diagonal(), 1, options)
    return rows, _factor(outputs, rows, options, f"gradient covariance of {name}")


def dense(problem: QuantizationProblem, statistic: str) -> Tensor:
    """Return a covariance (n, n). Raises NumericalError if it is zero or not finite."""
    covariance = problem.statistic(statistic)
    whole = covariance.dense() if isinstance(covariance, Covariance) else covariance
    check_covariance(whole, f"{statistic.replace('_', ' ')} of {problem.name}")
    return whole


def _whole_groups(weight: Tensor, inputs: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Append uncorrelated columns of zeros up to a multiple of the group."""
    missing = -weight.shape[1] % group
    unit = torch.eye(missing, dtype=inputs.dtype, device=inputs.device)
    blocks = torch.block_diag(inputs, mean_diagonal(inputs) * unit)
    return torch.nn.functional.pad(weight, (0, missing)), blocks


def _column_order(diagonal: Tensor, group: int, options: Options) -> Tensor:
    """Return all places, groups by their mean and places inside groups, descending."""
    if not options.act_order:
        return torch.arange(len(diagonal), device=diagonal.device)
    grouped = diagonal.unflatten(0, (-1, group))
    inside = grouped.argsort(dim=1, descending=True, stable=True)
    groups = grouped.mean(1).argsort(descending=True, stable=True)
    starts = group * torch.arange(len(grouped), device=inside.device)
    return (inside + starts[:, None])[groups].flatten()


def _factor(covariance: Tensor, order: Tensor, options: Options, name: str) -> Tensor:
    return inverse_factor(covariance[order][:, order], options.damping, name)


def _restored(rounded: Rounded, rows: Tensor, columns: Tensor) -> Rounded:
    """Return codes and grids in the order of the weight."""
    group = rounded.options.group
    back, groups = rows.argsort()[:, None], (columns[::group] // group).argsort()
    codes = rounded.codes[back, columns.argsort()]
    grid = rounded.scales[back, groups], rounded.zeros[back, groups]
    return Rounded(codes, *grid, rounded.options)


LAYER = RtnLinear
