"""A linear layer of every rank: a smaller rank is a beginning of the stored rows.

    y = sum_{i < rank} left_i <right_i, x> + b,   components[i] = [left_i, right_i]

`components` is (k, out + in), so that each rank is one contiguous piece of a file. The dense
`weight` may stand beside it, for sizes at which it takes less than factors. An elastic
checkpoint holds such layers; loading cuts each to one rank and one kind.
"""

from __future__ import annotations

from torch import Tensor, nn


class ElasticLinear(nn.Module):
    """Computes at `rank`, `None` for dense; by default at the largest size stored.

    A layer without a dense weight is dense as the product of all its components.

    Args:
        components: (k, out + in).
        weight: the dense weight as the dense layer stores it, or None.
        transposed: whether that is (in, out).
    """

    def __init__(
        self,
        shape: tuple[int, int],
        components: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        transposed: bool = False,
    ):
        super().__init__()
        self.out_features, self.in_features = shape
        self.components = nn.Parameter(components)
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.transposed = transposed
        self.rank: int | None = None if weight is not None else len(components)

    @property
    def held(self) -> tuple[int, bool]:
        """Return the number of components, and whether a dense weight stands beside them."""
        return len(self.components), self.weight is not None

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return left (out, rank) and right (rank, in)."""
        return split_components(self.components[:rank], self.out_features)

    def dense_weight(self) -> Tensor:
        """Return the dense weight (out, in)."""
        assert self.weight is not None
        return self.weight.T if self.transposed else self.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.rank is None and self.weight is not None:
            return nn.functional.linear(x, self.dense_weight(), self.bias)
        left, right = self.factors(self.rank or len(self.components))
        return nn.functional.linear(nn.functional.linear(x, right), left, self.bias)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}"


def split_components(rows: Tensor, out_features: int) -> tuple[Tensor, Tensor]:
    """Return left (out, r) and right (r, in) of the rows (r, out + in) of components."""
    return rows[:, :out_features].T, rows[:, out_features:]
