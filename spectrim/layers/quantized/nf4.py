"""NF4: the 16 quantiles of a normal distribution, scaled to each group of 64 neighbors.

    Q(w) = m_g t[argmin_k |w / m_g - t_k|],   m_g = max |w| over the group,   t_0 = -1, t_15 = 1

The groups run over the weight row by row, m_g is in float32: the numbers are those of
bitsandbytes without double quantization, but the library is not needed. A reference: the
matrix is computed for every product, through which gradients pass to the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.layers.quantized._base import CompressedLinear, empty_bias
from spectrim.layers.quantized._packing import pack_codes, packed_bytes, unpack_codes
from spectrim.linalg.psd import check_finite

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES: tuple[str, ...] = ()
REFERENCE = "Dettmers et al., 2023, arXiv:2305.14314"
_BITS = 4
_NEGATIVE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495),
)
_POSITIVE = (
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
LEVELS = (*_NEGATIVE, 0.0, *_POSITIVE)


@dataclass(frozen=True)
class Options:
    """Options of NF4; bits is 4; group: neighbors that share a scale, also across row ends."""

    bits: int = _BITS
    group: int = 64

    def __post_init__(self) -> None:
        if self.bits != _BITS:
            raise InputError(f"nf4 expects bits={_BITS}, got {self.bits!r}")
        if not isinstance(self.group, int) or self.group < 1:
            raise InputError(f"nf4 expects group >= 1, got {self.group!r}")


class Nf4Linear(CompressedLinear):
    """Buffers `codes` (packed, uint8) and `scales` (groups,), the bits of float32 as int32."""

    OPTIONS = Options
    codes: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Options) -> Nf4Linear:
        count = shape[0] * shape[1]
        buffers = {
            "codes": torch.empty(packed_bytes(count, _BITS), dtype=torch.uint8),
            "scales": torch.empty(-(-count // options.group), dtype=torch.int32),
        }
        return cls(shape, empty_bias(shape[0], bias), options, buffers)

    @classmethod
    def cost(cls, shape: tuple[int, int], options: Options, itemsize: int) -> int:
        count = shape[0] * shape[1]
        return packed_bytes(count, _BITS) + 4 * -(-count // options.group)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        count, group = self.out_features * self.in_features, self.options.group
        levels = torch.tensor(LEVELS, device=self.codes.device)
        steps = levels[unpack_codes(self.codes, _BITS, count).long()]
        scales = self.scales.view(torch.float32).repeat_interleave(group)[:count]
        return (steps * scales).view(self.out_features, self.in_features).to(dtype)

    def validate(self) -> str | None:
        if self.scales.is_meta or torch.isfinite(self.scales.view(torch.float32)).all():
            return None
        return "scales hold values that are NaN or infinite"


def compress(problem: QuantizationProblem, options: Options) -> Nf4Linear:
    """Quantize a weight. Raises NumericalError if it is not finite."""
    weight = problem.weight.detach().float()
    check_finite(weight, f"the weight of {problem.name}")
    flat = weight.flatten()
    grouped = torch.nn.functional.pad(flat, (0, -len(flat) % options.group))
    grouped = grouped.view(-1, options.group)
    scales = grouped.abs().amax(1)
    levels = torch.tensor(LEVELS, device=weight.device)
    relative = grouped / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2).flatten()[: len(flat)]
    buffers = {"codes": pack_codes(codes, _BITS), "scales": scales.view(torch.int32)}
    return Nf4Linear((weight.shape[0], weight.shape[1]), problem.bias, options, buffers)


LAYER = Nf4Linear
