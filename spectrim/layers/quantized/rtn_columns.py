"""Round to nearest by columns: `Q(W) = Q_rtn(W^T)^T`, every input has its own scales.

Of a factor left (out, r) a column is one component, so that a prefix of components is whole
groups, as rows of right (r, in) are by `rtn`: elastic checkpoints store factors so, and any
rank is cut without rounding again. Codes and scales are those of `rtn` for W^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectrim.layers.quantized import rtn
from spectrim.layers.quantized._base import CompressedLinear, empty_bias
from spectrim.layers.quantized.rtn import Options as Options
from spectrim.layers.quantized.rtn import RtnLinear

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES: tuple[str, ...] = ()
REFERENCE = "rtn of the transposed matrix"


class RtnColumnsLinear(CompressedLinear):
    """The buffers of an `RtnLinear` that stores W^T (in, out)."""

    OPTIONS = Options

    @classmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Options) -> RtnColumnsLinear:
        rows = RtnLinear.empty((shape[1], shape[0]), False, options)
        return cls(shape, empty_bias(shape[0], bias), options, dict(rows.named_buffers()))

    @classmethod
    def cost(cls, shape: tuple[int, int], options: Options, itemsize: int) -> int:
        return RtnLinear.cost((shape[1], shape[0]), options, itemsize)

    @property
    def rows(self) -> RtnLinear:
        """Return the layer of W^T."""
        shape = self.in_features, self.out_features
        buffers = {name: getattr(self, name) for name in self._buffers}
        return RtnLinear(shape, None, self.options, buffers)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.rows.matrix(dtype).T

    def validate(self) -> str | None:
        return self.rows.validate()


@dataclass(frozen=True)
class _Transposed:
    name: str
    weight: Tensor
    bias: None = None

    def statistic(self, name: str) -> None:
        raise KeyError(name)


def compress(problem: QuantizationProblem, options: Options) -> RtnColumnsLinear:
    """Quantize a weight. Raises NumericalError as `rtn` does."""
    rows = rtn.compress(_Transposed(problem.name, problem.weight.T), options)
    shape = rows.in_features, rows.out_features
    return RtnColumnsLinear(shape, problem.bias, options, dict(rows.named_buffers()))


LAYER = RtnColumnsLinear
