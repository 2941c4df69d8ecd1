"""Linear measurements of a matrix that is known by its factors: `y_i = <A_i, L R^T>`.

    entries     A_i = e_row e_col^T          O(m k) for m entries
    rank one    A_i = a_i a_i^T, symmetric   O(m d k)
    dense       any A_i (p, q)               O(m p q)

Each gives `forward(left, right)` (m,) of L (p, k) and R (q, k), and `adjoint(values)` (p, q),
`sum_i values_i A_i`, by which `<forward(L, R), v> = <L R^T, adjoint(v)>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spectrim.errors import InputError


class Measurements(Protocol):
    """shape: (p, q); symmetric: whether all A_i are, so that the matrix is sought as U U^T."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def symmetric(self) -> bool: ...

    def forward(self, left: Tensor, right: Tensor) -> Tensor: ...

    def adjoint(self, values: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Entries:
    """Entries (rows_i, columns_i) of a matrix; rows and columns are int64 (m,)."""

    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]
    symmetric: bool = False

    @classmethod
    def all_of(cls, shape: tuple[int, int]) -> Entries:
        """Return every entry, row by row."""
        grid = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1]))
        return cls(grid[:, 0], grid[:, 1], shape)

    def check(self) -> None:
        """Raise InputError for a row or a column without any entry: nothing determines it."""
        for what, index, size in zip(
            ("row", "column"), (self.rows, self.columns), self.shape, strict=True
        ):
            empty = (torch.bincount(index, minlength=size) == 0).nonzero().flatten()
            if len(empty):
                raise InputError(
                    f"{what} {int(empty[0])} of the {self.shape[0]} x {self.shape[1]} matrix "
                    f"has no observed entry ({len(empty)} such {what}s); leave it out or "
                    "observe an entry of it"
                )

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left[self.rows] * right[self.columns]).sum(1)

    def adjoint(self, values: Tensor) -> Tensor:
        result = values.new_zeros(self.shape)
        return result.index_put_((self.rows, self.columns), values, accumulate=True)


@dataclass(frozen=True)
class RankOne:
    """Quadratic forms `a_i^T X a_i`; vectors (m, d)."""

    vectors: Tensor
    symmetric: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.vectors.shape[1], self.vectors.shape[1]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return ((self.vectors @ left) * (self.vectors @ right)).sum(1)

    def adjoint(self, values: Tensor) -> Tensor:
        return (self.vectors.T * values) @ self.vectors


@dataclass(frozen=True)
class Dense:
    """Inner products with any matrices (m, p, q)."""

    matrices: Tensor
    symmetric: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrices.shape[1], self.matrices.shape[2]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.matrices.flatten(1) @ (left @ right.T).flatten()

    def adjoint(self, values: Tensor) -> Tensor:
        result = (values @ self.matrices.flatten(1)).reshape(self.shape)
        return (result + result.T) / 2 if self.symmetric else result
