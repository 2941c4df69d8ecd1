"""CoSpaDi: a sparse dictionary, `y = A (D x)`, s = ceil(k / 2) non-zeros in A's rows of k.

`rank` is the number k of atoms, the rows of D (k, in): W_hat has at most that rank, but its
rows lie in as many different subspaces of dimension s. Stored are D, the non-zeros of A as
values (out, s), and their positions as one bit per entry of A, which at half non-zeros takes
less than indices. The bits count as weights of 16 bits:

    k in + s out + k out / 16

weights. A is expanded to multiply: the kind saves storage, not time.

D and A are learned in the metric of the decomposition. In the coordinates of its factors'
`right` an input metric is diagonal, so the matrix to approximate is

    Y = left diag(b),   b the norms of right's rows in the input metric,

row by row (CoSpaDi, with the factors of `svd_llm`). Given A the best atoms are the same for
every input metric, those of least squares on the weight itself, so none is inverted. b is
known exactly if the output metric is the identity (`s_i / |left_i|`); for two-sided methods
like `obd` this formula approximates it, and the rows are not weighted.

Predicted losses are those of the factors cut at k terms, which no such A reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spectrim.layers._base import FactoredLinear, double, linear
from spectrim.layers.pivoted import pack_bits, unpack_bits
from spectrim.linalg.sparse_coding import SparseCode, ksvd, orthogonal
from spectrim.linalg.truncated import Factors

REFERENCE = "Shopkhoev et al., 2025, arXiv:2509.22075"


@dataclass(frozen=True)
class Options:
    """Options of the dictionary.

    variant: "ksvd" as published; "orthogonal" learns orthonormal atoms in a fraction of the
    time. power_iterations: per atom and round, for "ksvd" only.
    """

    variant: Literal["orthogonal", "ksvd"] = "orthogonal"
    rounds: Annotated[int, Field(ge=1)] = 60
    power_iterations: Annotated[int, Field(ge=1)] = 8


class SparseDictionaryLinear(FactoredLinear):
    """Child `dictionary` (in -> k); `values` (out, s), `bias`, and the packed `mask`."""

    LOSSLESS = False
    mask: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, dictionary: nn.Linear, values: Tensor, mask: Tensor, bias: Tensor | None
    ):
        super().__init__(dictionary.in_features, len(values), dictionary.out_features)
        self.dictionary = dictionary
        self.values = nn.Parameter(values)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.register_buffer("mask", mask)

    @classmethod
    def cost(cls, out_features: int, in_features: int, rank: int) -> int:
        mask_bytes = _bytes(out_features * rank)
        values = out_features * nonzeros_of(rank)
        return rank * in_features + values + (mask_bytes + 1) // 2

    @classmethod
    def from_factors(
        cls, left: Tensor, right: Tensor, bias: Tensor | None
    ) -> SparseDictionaryLinear:
        """Return an exact layer if no row of `left` has more than s non-zeros.

        Otherwise approximate it with orthonormal atoms.
        """
        left, right = left.double(), right.double()
        most = int((left != 0).sum(1).max())
        if most > nonzeros_of(left.shape[1]):
            data = left @ torch.linalg.qr(right.T).R.T
            left, right = _solved(_learnt(data, left.shape[1], Options()), left, right)
        return cls._of(left, right, bias)

    @classmethod
    def from_full(
        cls, factors: Factors, rank: int, bias: Tensor | None, options: Any
    ) -> SparseDictionaryLinear:
        left, right = factors.left.double(), factors.right.double()
        norms = left.norm(dim=0)
        scale = torch.where(norms > 0, factors.spectrum / norms, 0.0)
        code = _learnt(left * scale, rank, options)
        coefficients, dictionary = _solved(code, left, right)
        if factors.bias_shift is not None:
            atoms = torch.linalg.lstsq(code.coefficients, left, driver="gelsd").solution
            shift = (left - coefficients @ atoms) @ factors.bias_shift
            bias = shift if bias is None else shift + bias.double()
        return cls._of(coefficients, dictionary, bias)

    @classmethod
    def _of(
        cls, coefficients: Tensor, dictionary: Tensor, bias: Tensor | None
    ) -> SparseDictionaryLinear:
        """Return the layer, with atoms and coefficients of equal norms, s places per row."""
        atoms, users = dictionary.norm(dim=1), coefficients.norm(dim=0)
        scale = torch.where((atoms > 0) & (users > 0), (atoms / users).sqrt(), 1.0)
        coefficients = coefficients * scale
        places = coefficients.abs().topk(nonzeros_of(len(atoms)), dim=1).indices.sort(1).values
        mask = torch.zeros(coefficients.shape, dtype=torch.bool).scatter_(1, places, True)
        return cls(
            linear(dictionary / scale[:, None], None),
            coefficients.gather(1, places),
            pack_bits(mask.flatten()),
            double(bias),
        )

    @classmethod
    def empty(cls, shape: tuple[int, int], rank: int, bias: bool) -> SparseDictionaryLinear:
        out_features, in_features = shape
        return cls(
            nn.Linear(in_features, rank, bias=False),
            torch.empty(out_features, nonzeros_of(rank)),
            torch.zeros(_bytes(out_features * rank), dtype=torch.uint8),
            torch.empty(out_features) if bias else None,
        )

    @property
    def first(self) -> nn.Linear:
        return self.dictionary

    def finish(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z, self.coefficients(), self.bias)

    def coefficients(self) -> Tensor:
        """Return A (out, k), differentiable in `values`, which fill its places row by row."""
        marked = self._marked()
        return torch.zeros_like(marked, dtype=self.values.dtype).masked_scatter(
            marked, self.values
        )

    def _marked(self) -> Tensor:
        count = self.out_features * self.rank
        return unpack_bits(self.mask, count).view(self.out_features, self.rank)

    def validate(self) -> str | None:
        if self.mask.is_meta:
            return None
        wanted = nonzeros_of(self.rank)
        wrong = self._marked().sum(1) != wanted
        if not bool(wrong.any()):
            return None
        return f"mask marks other than {wanted} places in {int(wrong.sum())} of its rows"

    def dense(self) -> tuple[Tensor, Tensor | None]:
        weight = (
            self.coefficients().detach().double() @ self.dictionary.weight.detach().double()
        )
        return weight, double(self.bias)


def nonzeros_of(rank: int) -> int:
    """Return the non-zeros in a row of A for `rank` atoms: half of them, as published."""
    return (rank + 1) // 2


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _learnt(data: Tensor, atoms: int, options: Options) -> SparseCode:
    nonzeros = nonzeros_of(atoms)
    if options.variant == "orthogonal":
        return orthogonal(data, atoms, nonzeros, options.rounds)
    return ksvd(data, atoms, nonzeros, options.rounds, options.power_iterations)


def _solved(code: SparseCode, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the code's coefficients A (out, k) and the least-squares atoms (k, in).

    The atoms minimize `||left right - A D||` in any metric of the input.
    """
    solution = torch.linalg.lstsq(code.coefficients, left, driver="gelsd").solution
    return code.coefficients, solution @ right


LAYER = SparseDictionaryLinear
