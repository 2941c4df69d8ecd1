"""An embedding table in two factors, and the output embedding that shares it.

    lookup:  e_v = basis c_v + mean          logits:  z = C (basis^T h) + <mean, h>

C (V, r) is `coefficients.weight` with rows c_v, `basis.weight` (d, r), `basis.bias` the mean.
"""

from __future__ import annotations

from torch import Tensor, nn


class FactoredEmbedding(nn.Module):
    """Children `coefficients` (ids -> r) and `basis` (r -> d, with the mean as its bias)."""

    def __init__(self, coefficients: nn.Embedding, basis: nn.Linear):
        super().__init__()
        self.num_embeddings = coefficients.num_embeddings
        self.embedding_dim = basis.out_features
        self.rank = coefficients.embedding_dim
        self.coefficients = coefficients
        self.basis = basis

    @classmethod
    def cost(cls, count: int, width: int, rank: int) -> int:
        """Return the stored weights, without the mean, of a table (count, width) at `rank`."""
        return rank * (count + width)

    @classmethod
    def from_factors(
        cls, left: Tensor, right: Tensor, mean: Tensor | None
    ) -> FactoredEmbedding:
        """Return a float64 table from left (V, r), right (r, d) and mean (d,) or None."""
        table = cls.empty((left.shape[0], right.shape[1]), left.shape[1], mean is not None)
        table.coefficients.weight = nn.Parameter(left.double().contiguous().clone())
        table.basis.weight = nn.Parameter(right.double().T.contiguous().clone())
        if mean is not None:
            table.basis.bias = nn.Parameter(mean.double().clone())
        return table

    @classmethod
    def empty(cls, shape: tuple[int, int], rank: int, mean: bool) -> FactoredEmbedding:
        """Return an uninitialized table of shape (V, d), to be filled by a loader."""
        count, width = shape
        return cls(
            nn.Embedding(count, rank, device="meta"),
            nn.Linear(rank, width, bias=mean, device="meta"),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.basis(self.coefficients(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the products with all rows: hidden (..., d) -> (..., V)."""
        result = hidden @ self.basis.weight @ self.coefficients.weight.T
        if self.basis.bias is None:
            return result
        return result + (hidden @ self.basis.bias)[..., None]

    def dense(self) -> Tensor:
        """Return the table (V, d), float64."""
        rows = self.coefficients.weight.detach().double()
        table = rows @ self.basis.weight.detach().double().T
        mean = self.basis.bias
        return table if mean is None else table + mean.detach().double()

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"


class FactoredHead(nn.Module):
    """The output embedding of a tied table.

    It has no tensor of its own, so the tie survives loading, casting, moving and copying of the
    whole model.
    """

    def __init__(self, table: FactoredEmbedding):
        super().__init__()
        self.in_features = table.embedding_dim
        self.out_features = table.num_embeddings
        self._shared = (table,)  # in a tuple it is no child, and its tensors are stored once

    @property
    def table(self) -> FactoredEmbedding:
        return self._shared[0]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.table.logits(hidden)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, tied"
