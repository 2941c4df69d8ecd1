"""Interpolative rows: a rank-r matrix as r of its rows and bounded coefficients.

    left (n x r) = C @ left[pivots],   C[pivots] = I,   |C_ij| <= bound

Pivots start from LU with partial pivoting; then, as long as a coefficient exceeds the
bound, its row and its pivot change places. Each swap multiplies the volume of the pivot
rows by more than `bound`, so the loop ends (the maxvol algorithm; the storage it serves
is PIFA, arXiv:2501.19090).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.errors import NumericalError
from spectrim.linalg.psd import check_finite

COEFFICIENT_BOUND = 1.5
"""Largest absolute coefficient that `pivot_rows` leaves."""
_MOST_SWAPS_PER_ROW = 20


def pivot_rows(left: Tensor) -> tuple[Tensor, Tensor]:
    """Return pivots (r,) int64 and coefficients (n - r, r) of the other rows, both ascending.

    `left` is (n, r), float64. Raises NumericalError if it is not of full column rank or not
    finite.
    """
    rows, rank = left.shape
    check_finite(left, "factor")
    permutation, _, upper = torch.linalg.lu(left.double())
    diagonal = upper.diagonal().abs()
    if rank == 0 or bool(diagonal.min() <= diagonal.max() * 1e-13):
        raise NumericalError(
            f"a factor of shape {tuple(left.shape)} has rank below {rank}; "
            "the layer is exactly low-rank: choose a smaller rank for it"
        )
    order = permutation.argmax(dim=0)
    pivots, others = order[:rank].clone(), order[rank:].clone()
    coefficients = _coefficients(left, pivots, others)
    for _ in range(_MOST_SWAPS_PER_ROW * rows):
        if others.numel() == 0 or not _swap_largest(coefficients, pivots, others):
            break
    pivots, others = pivots.sort().values, others.sort().values
    return pivots, _coefficients(left, pivots, others)


def _coefficients(left: Tensor, pivots: Tensor, others: Tensor) -> Tensor:
    left = left.double()
    return torch.linalg.solve(left[pivots].T, left[others].T).T


def _swap_largest(coefficients: Tensor, pivots: Tensor, others: Tensor) -> bool:
    """Exchange the row and pivot of the largest coefficient in place; return False if
    bounded.
    """
    flat = int(coefficients.abs().argmax())
    row, column = divmod(flat, coefficients.shape[1])
    value = coefficients[row, column].clone()
    if value.abs() <= COEFFICIENT_BOUND:
        return False
    pivots[column], others[row] = others[row].clone(), pivots[column].clone()
    old_column = coefficients[:, column].clone()
    old_row = coefficients[row].clone()
    coefficients.addr_(old_column / value, old_row, alpha=-1)
    coefficients[:, column] = old_column / value
    coefficients[row] = -old_row / value
    coefficients[row, column] = 1 / value
    return True
