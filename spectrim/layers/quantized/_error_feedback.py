"""Round a matrix entry by entry and move each error to the entries not yet rounded.

    min || L_out^T (W - Q) L_in ||_F,   C_in^-1 = U^T U,   C_out^-1 = V^T V,   U, V upper

    d_ij = (w_ij - q_ij) / (V_ii U_jj),   w_kl <- w_kl - V_ik d_ij U_jl   for k >= i, l >= j

The loss is the sum of d_ij^2. Without V the rows are independent (C_out diagonal). An entry
needs only those above it and to its left, so that with V a whole diagonal is rounded at once;
errors leave a tile of rows and columns in one product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.layers.quantized.rtn import Options, codes_of, make_grid, search_grid
from spectrim.linalg.psd import cholesky

_TILE = 64
"""Rows and columns, at least one group, that are rounded before the rest is updated."""


@dataclass(frozen=True)
class Rounded:
    """Codes (rows, columns), scales and zero points (rows, groups), filled in place.

    importance (groups, group): what a squared error costs, by column; None fits every grid to
    the range of its group.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    options: Options
    importance: Tensor | None = None

    @classmethod
    def empty(
        cls, weight: Tensor, options: Options, importance: Tensor | None = None
    ) -> Rounded:
        groups = (weight.shape[0], weight.shape[1] // options.group)
        scales = weight.new_empty(groups, dtype=torch.float16)
        zeros = weight.new_empty(groups, dtype=torch.float32)
        codes = torch.empty_like(weight, dtype=torch.uint8)
        return cls(codes, scales, zeros, options, importance)

    def matrix(self) -> Tensor:
        """Return the rounded values (rows, columns), float64."""
        size, columns = self.options.group, self.codes.shape[1]
        scales, zeros = (
            by_group.double().repeat_interleave(size, 1)[:, :columns]
            for by_group in (self.scales, self.zeros)
        )
        return scales * (self.codes.double() - zeros)

    def part(self, rows: slice, columns: slice) -> Rounded:
        """Return a view of a tile of whole groups."""
        size = self.options.group
        groups = slice(columns.start // size, columns.stop // size)
        grid = self.scales[rows, groups], self.zeros[rows, groups]
        importance = None if self.importance is None else self.importance[groups]
        return Rounded(self.codes[rows, columns], *grid, self.options, importance)

    def begin_groups(self, weight: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Fit the grids of the groups whose first column is among the entries."""
        first = columns % self.options.group == 0
        if bool(first.any()):
            at = rows[first], columns[first] // self.options.group
            values = weight.unflatten(1, (-1, self.options.group))[at].float()
            self.scales[at], self.zeros[at] = self._grid(values, at[1])

    def _grid(self, values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        if self.importance is None:
            return make_grid(values, self.options)
        return search_grid(values, self.importance[groups].float(), self.options)

    def round(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Store the codes of some entries and return their rounded values."""
        groups = columns // self.options.group
        scales, zeros = self.scales[rows, groups].to(values.dtype), self.zeros[rows, groups]
        codes = codes_of(values / scales, zeros, self.options)
        self.codes[rows, columns] = codes.to(torch.uint8)
        return scales * (codes - zeros)


def inverse_factor(covariance: Tensor, damping: float, name: str) -> Tensor:
    """Return the upper U of `C_damped^-1 = U^T U`, without forming the inverse.

    Raises NumericalError for a covariance that is zero, not finite or indefinite.
    """
    factor = cholesky(covariance.flip(0, 1), damping, name).flip(0, 1)
    unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, unit, upper=True)


def round_with_feedback(
    weight: Tensor,
    columns: Tensor,
    rows: Tensor | None,
    options: Options,
    importance: Tensor | None = None,
) -> Rounded:
    """Round weight (out, in), in a multiple of the group, by the upper factors U and V.

    A group's grid is fitted to its entries when its first one is rounded: to their range or,
    by the importance of each column (in,), for the least weighted squared error.
    """
    left = weight.double()
    weights = None if importance is None else importance.unflatten(0, (-1, options.group))
    rounded = Rounded.empty(left, options, weights)
    height = len(left) if rows is None else _TILE
    for top in range(0, len(left), height):
        strip = slice(top, min(top + height, len(left)))
        before, factor = left[strip].clone(), None if rows is None else rows[strip, strip]
        _round_strip(left[strip], columns, factor, rounded.part(strip, slice(0, left.shape[1])))
        if rows is not None:
            left[strip.stop :] -= _carried(rows, strip).T @ (before - left[strip])
    return rounded


def _round_strip(left: Tensor, columns: Tensor, rows: Tensor | None, rounded: Rounded) -> None:
    """Round the rows in place, tile by tile from the left."""
    group, count = rounded.options.group, left.shape[1]
    width = group * max(1, _TILE // group)
    for start in range(0, count, width):
        block = slice(start, min(start + width, count))
        tile = left[:, block]
        before = tile.clone()
        factor, part = columns[block, block], rounded.part(slice(0, len(left)), block)
        _round_tile(tile, factor, rows, part)
        left[:, block.stop :] -= (before - tile) @ _carried(columns, block)


def _round_tile(tile: Tensor, columns: Tensor, rows: Tensor | None, rounded: Rounded) -> None:
    """Round a tile in place; with V every row is one column behind the row above."""
    height, width = tile.shape
    lag = 0 if rows is None else 1
    for step in range(width + lag * (height - 1)):
        first, last = (max(0, step - width + 1), min(height, step + 1)) if lag else (0, height)
        i = torch.arange(first, last, device=tile.device)
        j = step - lag * i
        rounded.begin_groups(tile, i, j)
        error = tile[i, j] - rounded.round(tile[i, j], i, j)
        moved = (error / columns[j, j])[:, None] * columns[j]
        tile -= moved if rows is None else (rows[i] / rows[i, i][:, None]).T @ moved


def _carried(factor: Tensor, block: slice) -> Tensor:
    """Return what an error inside a block moves to each later place per place of the block."""
    inside, beyond = factor[block, block], factor[block, block.stop :]
    return torch.linalg.solve_triangular(inside, beyond, upper=True)
