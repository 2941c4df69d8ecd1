"""Round to nearest: `Q(W) = s (q - z)`, q of 2 to 8 bits, one s (and z) per group of a row.

    symmetric    s = max|w| / (2^b - 1) * 2,   z = 2^(b-1)
    asymmetric   s = (max(w, 0) - min(w, 0)) / (2^b - 1),   z = round(-min(w, 0) / s)
    centered     s = max|w| / (2^b - 1) * 2,   z = (2^b - 1) / 2

Codes are packed without gaps (3-bit codes cross byte borders), scales are float16, zero
points take b bits where they differ by group. The centered grid has no zero, and as many
points on either side. The codes are rounded against the stored scale. A reference without
calibration: the matrix is computed for every product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.layers.quantized._base import CompressedLinear, empty_bias
from spectrim.layers.quantized._packing import pack_codes, packed_bytes, unpack_codes
from spectrim.linalg.psd import check_finite

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES: tuple[str, ...] = ()
REFERENCE = "the common baseline; groups as in Frantar et al., 2022, arXiv:2210.17323"
SCHEMES = ("symmetric", "asymmetric", "centered")
_SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16."""
SHARES = tuple(1 - 0.05 * step for step in range(13))
"""Of a group's range, that a search tries."""
CHOICES = tuple({"bits": b, "group": g} for b in (2, 3, 4, 5, 6, 8) for g in (32, 128))
"""What each layer chooses among under a budget."""


@dataclass(frozen=True)
class Options:
    """Options of RTN; group: columns that share a scale, possibly fewer at the end of a row."""

    bits: int = 4
    group: int = 32
    scheme: Literal["symmetric", "asymmetric", "centered"] = "asymmetric"

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise InputError(f"rtn expects bits from 2 to 8, got {self.bits!r}")
        if not isinstance(self.group, int) or self.group < 1:
            raise InputError(f"rtn expects group >= 1, got {self.group!r}")
        if self.scheme not in SCHEMES:
            raise InputError(f"rtn expects a scheme of {SCHEMES}, got {self.scheme!r}")


class RtnLinear(CompressedLinear):
    """Buffers `codes` and `zeros` (packed, uint8) and `scales` (out, groups).

    The scales are float16 numbers stored as int16, so that casting a model keeps them.
    """

    OPTIONS = Options
    codes: Tensor
    scales: Tensor
    zeros: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Options) -> RtnLinear:
        rows, groups = shape[0], groups_of(shape, options)
        buffers = {
            "codes": torch.empty(
                packed_bytes(rows * shape[1], options.bits), dtype=torch.uint8
            ),
            "scales": torch.empty(rows, groups, dtype=torch.int16),
        }
        if options.scheme == "asymmetric":
            count = packed_bytes(rows * groups, options.bits)
            buffers["zeros"] = torch.empty(count, dtype=torch.uint8)
        return cls(shape, empty_bias(rows, bias), options, buffers)

    @classmethod
    def from_codes(
        cls, codes: Tensor, grid: tuple[Tensor, Tensor], bias: Tensor | None, options: Options
    ) -> RtnLinear:
        """Return the layer of codes (out, in), with the scales and zero points of a grid."""
        scales, zeros = grid
        buffers = {
            "codes": pack_codes(codes, options.bits),
            "scales": scales.view(torch.int16),
        }
        if options.scheme == "asymmetric":
            buffers["zeros"] = pack_codes(zeros, options.bits)
        return cls((codes.shape[0], codes.shape[1]), bias, options, buffers)

    @classmethod
    def cost(cls, shape: tuple[int, int], options: Options, itemsize: int) -> int:
        groups = shape[0] * groups_of(shape, options)
        codes = packed_bytes(shape[0] * shape[1], options.bits)
        zeros = packed_bytes(groups, options.bits) if options.scheme == "asymmetric" else 0
        return codes + 2 * groups + zeros

    def matrix(self, dtype: torch.dtype) -> Tensor:
        rows, columns, bits = self.out_features, self.in_features, self.options.bits
        scales = self.scales.view(torch.float16).to(torch.promote_types(dtype, torch.float32))
        codes = unpack_codes(self.codes, bits, rows * columns).view(rows, columns)
        steps = codes.to(scales.dtype) - self._spread(self._zeros(scales))
        return (steps * self._spread(scales)).to(dtype)

    def validate(self) -> str | None:
        if self.scales.is_meta or torch.isfinite(self.scales.view(torch.float16)).all():
            return None
        return "scales hold values that are NaN or infinite"

    def _zeros(self, scales: Tensor) -> Tensor:
        if self.options.scheme != "asymmetric":
            return torch.full_like(scales, fixed_zero(self.options))
        zeros = unpack_codes(self.zeros, self.options.bits, scales.numel())
        return zeros.view_as(scales).to(scales.dtype)

    def _spread(self, by_group: Tensor) -> Tensor:
        """Expand (out, groups) to (out, in)."""
        return by_group.repeat_interleave(self.options.group, 1)[:, : self.in_features]


def compress(problem: QuantizationProblem, options: Options) -> RtnLinear:
    """Quantize a weight.

    Raises NumericalError if it is not finite or exceeds the range of float16 scales.
    """
    weight = problem.weight.detach().float()
    check_finite(weight, f"the weight of {problem.name}")
    grouped = _grouped(weight, options.group)
    scales, zeros = make_grid(grouped, options)
    check_finite(scales, f"float16 scales of {problem.name}")
    codes = codes_of(grouped / scales.float()[..., None], zeros[..., None], options)
    flat = codes.flatten(1)[:, : weight.shape[1]]
    return RtnLinear.from_codes(flat, (scales, zeros), problem.bias, options)


def groups_of(shape: tuple[int, int], options: Options) -> int:
    """Return the number of groups of one row."""
    return -(-shape[1] // options.group)


def _grouped(weight: Tensor, group: int) -> Tensor:
    """Reshape (out, in) to (out, groups, group), padded with zeros."""
    missing = -weight.shape[1] % group
    return torch.nn.functional.pad(weight, (0, missing)).unflatten(1, (-1, group))


def top_code(options: Options) -> int:
    return 2**options.bits - 1


def fixed_zero(options: Options) -> float:
    """Return the zero point of a grid that stores none."""
    return 2 ** (options.bits - 1) if options.scheme == "symmetric" else top_code(options) / 2


def codes_of(steps: Tensor, zeros: Tensor, options: Options) -> Tensor:
    """Return the codes, as floats, nearest to values that are given in steps of the grid."""
    half = zeros % 1
    return ((steps + half).round() + (zeros - half)).clamp(0, top_code(options))


def make_grid(grouped: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return float16 scales and zero points (...) for float32 groups (..., group)."""
    top = top_code(options)
    if options.scheme != "asymmetric":
        scales = _stored(grouped.abs().amax(-1) * 2 / top)
        return scales, torch.full_like(scales, fixed_zero(options), dtype=torch.float32)
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    scales = _stored((high - low) / top)
    return scales, (-low / scales.float()).round().clamp(0, top)


def search_grid(grouped: Tensor, importance: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return the grid of least `sum_j importance_j (w_j - q_j)^2`, of shrunk ranges.

    importance (..., group); the ranges are those of `make_grid`, times 1 down to .4.
    """
    shares = torch.tensor(SHARES, device=grouped.device).view(-1, *[1] * grouped.dim())
    scales, zeros = make_grid(shares * grouped, options)
    steps, origins = scales.float()[..., None], zeros[..., None]
    error = (
        grouped - steps * (codes_of(grouped / steps, origins, options) - origins)
    ).square_()
    best = (error * importance).sum(-1).argmin(0, keepdim=True)
    return scales.gather(0, best)[0], zeros.gather(0, best)[0]


def _stored(scales: Tensor) -> Tensor:
    return scales.clamp_min(_SMALLEST_SCALE).to(torch.float16)


LAYER = RtnLinear
