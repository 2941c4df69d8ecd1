"""Few bits, low rank and single entries: `W ~ Q + left right + S`, in the metric of the loss.

    min || L_out^T (W - Q - left right - S) L_in ||_F

Q holds `bits` per weight (0: none) and the factors `factor_bits` per number, both on centered
grids with a float16 scale per group; the groups of `left` (out, r) run along the outputs. S
holds the entries of largest gain, float16 with 16 bits of place: columns, and how many a row
has. Each part is refitted with the others fixed. A reference: the matrix is computed for every
product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.layers.quantized._base import CompressedLinear, empty_bias
from spectrim.layers.quantized._mixture import Mixture, MixtureSolver
from spectrim.layers.quantized._packing import centered_matrix, pack_codes, packed_bytes

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES = ("input_covariance", "gradient_covariance")
REFERENCE = (
    "low rank and bits as in Saha et al., 2024, arXiv:2405.18886; entries as in Dettmers et "
    "al., 2023, arXiv:2306.03078, by their gain in the two-sided metric"
)
PARTS = ("base", "right", "left")
_WIDEST = torch.iinfo(torch.int16).max
_FEW_RANKS, _FEW_ENTRIES = (0.0, 1 / 32, 1 / 16), (0.0, 0.005, 0.02)
_RANKS = (0.0625, 0.125, 0.25, 0.375, 0.5)
CHOICES: tuple[dict[str, Any], ...] = (
    *({"bits": 0, "rank_share": r, "density": d} for r in _RANKS for d in (0.0, 0.01)),
    *(
        {"bits": b, "rank_share": r, "density": d}
        for b in (2, 3, 4)
        for r in _FEW_RANKS
        for d in _FEW_ENTRIES
    ),
    *({"bits": b, "rank_share": 0.0, "density": 0.0} for b in (5, 8)),
)
"""What each layer chooses among under a budget."""
DRAFT = {"rounds": 0}
"""Options with which choices are priced: refitting only lowers the loss."""
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bits": (lambda n: n in (0, *range(2, 9)), "0 or from 2 to 8"),
    "group": (lambda n: isinstance(n, int) and n >= 1, "of 1 or more"),
    "rank_share": (lambda x: isinstance(x, int | float) and 0 <= x <= 1, "from 0 to 1"),
    "factor_bits": (lambda n: n in range(2, 9), "from 2 to 8"),
    "density": (lambda x: isinstance(x, int | float) and 0 <= x <= 0.5, "from 0 to 0.5"),
    "damping": (lambda x: isinstance(x, int | float) and 0 <= x <= 1, "from 0 to 1"),
    "rounds": (lambda n: isinstance(n, int) and n >= 0, "of 0 or more"),
}


@dataclass(frozen=True)
class Options:
    """The share of each part, and how it is solved.

    bits: of Q, 0 or 2 to 8. group: weights per scale. rank_share: of the full rank.
    factor_bits: per number of the factors, 2 to 8. density: share of single entries. damping:
    of both covariances. two_sided: errors of Q move across rows too. rounds: of refitting.
    """

    bits: int = 3
    group: int = 64
    rank_share: float = 0.0
    factor_bits: int = 4
    density: float = 0.0
    damping: float = 1e-2
    two_sided: bool = True
    rounds: int = 1

    def __post_init__(self) -> None:
        for name, (is_valid, expected) in _EXPECTED.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not is_valid(value):
                raise InputError(f"mixed expects {name} {expected}, got {value!r}")
        if not (self.bits or self.rank_share or self.density):
            raise InputError("mixed stores nothing; give bits, rank_share or density")

    def rank(self, shape: tuple[int, int]) -> int:
        return round(self.rank_share * min(shape)) or int(self.rank_share > 0)

    def entries(self, shape: tuple[int, int]) -> int:
        return round(self.density * shape[0] * shape[1])

    def matrices(self, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, int], int]]:
        """Return the shape and the bits of each part that is stored in codes."""
        rank = self.rank(shape)
        found = {
            "base": (shape, self.bits),
            "right": ((rank, shape[1]), self.factor_bits),
            "left": ((rank, shape[0]), self.factor_bits),
        }
        return {name: part for name, part in found.items() if part[0][0] and part[1]}


class MixedLinear(CompressedLinear):
    """Buffers, where the options ask for the part:

    `base_codes`, `right_codes`, `left_codes` (packed, uint8) with `*_scales` (rows, groups),
    float16 as int16, `left` transposed; `values` (n,), float16 as int16, and `columns` (n,),
    ascending in each row; `counts` (out,).
    """

    OPTIONS = Options
    values: Tensor
    columns: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Options) -> MixedLinear:
        buffers = {}
        for name, ((rows, columns), bits) in options.matrices(shape).items():
            size = packed_bytes(rows * columns, bits)
            groups = -(-columns // options.group)
            buffers[f"{name}_codes"] = torch.empty(size, dtype=torch.uint8)
            buffers[f"{name}_scales"] = torch.empty(rows, groups, dtype=torch.int16)
        if count := options.entries(shape):
            buffers["values"] = torch.empty(count, dtype=torch.int16)
            buffers["columns"] = torch.empty(count, dtype=_places(shape))
            buffers["counts"] = torch.empty(shape[0], dtype=_places(shape))
        return cls(shape, empty_bias(shape[0], bias), options, buffers)

    @classmethod
    def _of(
        cls, mixture: Mixture, shape: tuple[int, int], bias: Tensor | None, options: Options
    ) -> MixedLinear:
        """Return the layer of weight shape (out, in) of a solved mixture."""
        held = {name: getattr(mixture, name) for name in PARTS}
        parts = {name: part for name, part in held.items() if part is not None}
        buffers = {}
        for name, part in parts.items():
            bits = options.bits if name == "base" else options.factor_bits
            buffers[f"{name}_codes"] = pack_codes(part.codes, bits)
            buffers[f"{name}_scales"] = part.scales.contiguous().view(torch.int16)
        if mixture.entries is not None:
            buffers |= _packed_entries(mixture.entries, options.entries(shape))
        return cls(shape, bias, options, buffers)

    @classmethod
    def cost(cls, shape: tuple[int, int], options: Options, itemsize: int) -> int:
        total = 0
        for (rows, columns), bits in options.matrices(shape).values():
            groups = -(-columns // options.group)
            total += packed_bytes(rows * columns, bits) + 2 * rows * groups
        if count := options.entries(shape):
            total += 2 * count + _places(shape).itemsize * (count + shape[0])
        return total

    def matrix(self, dtype: torch.dtype) -> Tensor:
        shape = self.out_features, self.in_features
        parts = {name: self._part(name) for name in self.options.matrices(shape)}
        total = parts.get("base")
        if total is None:
            total = torch.zeros(shape, device=next(self.buffers()).device)
        if "right" in parts:
            total = total + parts["left"].T @ parts["right"]
        if self.options.entries(shape):
            total[self._rows(), self.columns.long()] += self.values.view(torch.float16).float()
        return total.to(dtype)

    def _part(self, name: str) -> Tensor:
        shape = self.out_features, self.in_features
        (_, columns), bits = self.options.matrices(shape)[name]
        codes, scales = getattr(self, f"{name}_codes"), getattr(self, f"{name}_scales")
        return centered_matrix(codes, scales, columns, (bits, self.options.group))

    def _rows(self) -> Tensor:
        rows = torch.arange(self.out_features, device=self.counts.device)
        return rows.repeat_interleave(self.counts.long())

    def validate(self) -> str | None:
        held = dict(self.named_buffers())
        if any(tensor.is_meta for tensor in held.values()):
            return None
        for name, tensor in held.items():
            is_float = name.endswith("_scales") or name == "values"
            if is_float and not bool(torch.isfinite(tensor.view(torch.float16)).all()):
                return f"{name} hold values that are NaN or infinite"
        return self._misplaced() if "columns" in held else None

    def _misplaced(self) -> str | None:
        counts, columns = self.counts.long(), self.columns.long()
        if bool((counts < 0).any()) or int(counts.sum()) != len(columns):
            return f"counts do not add up to {len(columns)} entries"
        if bool((columns < 0).any() or (columns >= self.in_features).any()):
            return f"columns holds places outside the {self.in_features} inputs"
        ascending = (self._rows() * self.in_features + columns).diff() > 0
        return None if bool(ascending.all()) else "columns names a place twice, or out of order"


def solver(problem: QuantizationProblem) -> Callable[[Options], MixedLinear]:
    """Return what `compress` returns for options, with work shared among several of them."""
    solvers: dict[tuple[float, bool], MixtureSolver] = {}

    def solve(options: Options) -> MixedLinear:
        key = options.damping, options.two_sided
        if key not in solvers:
            solvers[key] = MixtureSolver(problem, *key)
        rows, columns = problem.weight.shape
        mixture = solvers[key].solve(options)
        return MixedLinear._of(mixture, (rows, columns), problem.bias, options)

    return solve


def compress(problem: QuantizationProblem, options: Options) -> MixedLinear:
    """Share a weight out among the parts.

    Raises NumericalError if it or a covariance is not finite, a covariance is zero, or a value
    exceeds the range of float16; InputError for a covariance summed through the weight.
    """
    return solver(problem)(options)


def _packed_entries(entries: Tensor, count: int) -> dict[str, Tensor]:
    """Return `values`, `columns` and `counts` of S (out, in); some values may be zero."""
    flat = entries.flatten().abs().topk(count).indices.sort().values
    rows, columns = flat // entries.shape[1], flat % entries.shape[1]
    kind = _places((entries.shape[0], entries.shape[1]))
    return {
        "values": entries.flatten()[flat].half().view(torch.int16),
        "columns": columns.to(kind),
        "counts": torch.bincount(rows, minlength=len(entries)).to(kind),
    }


def _places(shape: tuple[int, int]) -> torch.dtype:
    return torch.int16 if shape[1] <= _WIDEST else torch.int32


LAYER = MixedLinear
