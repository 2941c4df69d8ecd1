"""2:4 sparsity by magnitude: keep the two largest |w| of every four neighbors in a row.

Stored as the kept values, in the model's dtype, and two bits for the place of each: half the
weight and an eighth of a byte per weight. A reference: the matrix is computed for every
product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.layers.quantized._base import CompressedLinear, empty_bias
from spectrim.layers.quantized._packing import pack_codes, packed_bytes, unpack_codes
from spectrim.linalg.psd import check_finite

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES: tuple[str, ...] = ()
REFERENCE = "Mishra et al., 2021, arXiv:2104.08378"
_KEPT = 2
_OF = 4
_BITS = 2


@dataclass(frozen=True)
class Options:
    """Options of 2:4 sparsity: none."""


class Sparse24Linear(CompressedLinear):
    """Parameter `values` (out, in / 2), buffer `places` (packed, uint8)."""

    OPTIONS = Options
    places: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        bias: Tensor | None,
        options: Options,
        values: Tensor,
        places: Tensor,
    ):
        super().__init__(shape, bias, options, {"places": places})
        self.values = nn.Parameter(values)

    @classmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Options) -> Sparse24Linear:
        check_width(shape[1], "a layer")
        half = shape[1] // 2
        places = torch.empty(packed_bytes(shape[0] * half, _BITS), dtype=torch.uint8)
        values = torch.empty(shape[0], half)
        return cls(shape, empty_bias(shape[0], bias), options, values, places)

    @classmethod
    def cost(cls, shape: tuple[int, int], options: Options, itemsize: int) -> int:
        kept = shape[0] * shape[1] // 2
        return kept * itemsize + packed_bytes(kept, _BITS)

    def validate(self) -> str | None:
        if self.places.is_meta:
            return None
        places = self._places()
        ascend = bool((places[..., 0] < places[..., 1]).all())
        return None if ascend else "places do not name two of four inputs in ascending order"

    def _places(self) -> Tensor:
        """Return the places (out, in / 4, 2), each 0 .. 3, ascending."""
        rows, half = self.values.shape
        places = unpack_codes(self.places, _BITS, rows * half)
        return places.view(rows, half // _KEPT, _KEPT).long()

    def matrix(self, dtype: torch.dtype) -> Tensor:
        rows, half = self.values.shape
        values = self.values.to(dtype).view(rows, -1, _KEPT)
        zeros = values.new_zeros(rows, half // _KEPT, _OF)
        return zeros.scatter(-1, self._places(), values).flatten(1)


def compress(problem: QuantizationProblem, options: Options) -> Sparse24Linear:
    """Prune a weight by magnitude.

    Raises ModelError for a width that is not a multiple of four, NumericalError for a weight
    that is not finite.
    """
    return keep_largest(problem, options, problem.weight.abs())


def keep_largest(
    problem: QuantizationProblem, options: Options, score: Tensor
) -> Sparse24Linear:
    """Keep the two highest scores (out, in) of every four."""
    weight = problem.weight.detach()
    check_width(weight.shape[1], problem.name)
    check_finite(weight, f"the weight of {problem.name}")
    fours = score.unflatten(1, (-1, _OF))
    places = fours.topk(_KEPT, dim=-1).indices.sort(dim=-1).values
    values = weight.unflatten(1, (-1, _OF)).gather(-1, places).flatten(1)
    shape = (weight.shape[0], weight.shape[1])
    return Sparse24Linear(
        shape, problem.bias, options, values.contiguous(), pack_codes(places, _BITS)
    )


def check_width(columns: int, name: str) -> None:
    if columns % _OF:
        raise ModelError(
            f"{name} has {columns} inputs; 2:4 sparsity needs a multiple of {_OF}: "
            "leave it out with --exclude"
        )


LAYER = Sparse24Linear
