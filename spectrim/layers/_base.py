"""The base classes of all compact and factored layers.

A kind's children are plain `nn.Linear` modules, so that adapters, quantizers, exporters and
tensor parallelism support them; its tensors are found by name on loading.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.layers._lazy_weight import LazyWeight
from spectrim.linalg.truncated import Factors


class CompactLinear(nn.Module, ABC):
    """A linear map `y = W_hat x + b` that is stored in less memory than W_hat (out, in).

    filled: False while a loader has still to give the tensors their values.
    """

    filled = True

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank

    @abstractmethod
    def dense(self) -> tuple[Tensor, Tensor | None]:
        """Return the effective weight (out, in) and bias (out,) of this layer, float64."""

    @property
    def weight(self) -> Tensor:
        """Return the weight (out, in), multiplied out whenever its values are read.

        It is for models that read a layer's weight besides calling it, if only its dtype.
        Gradients flow; writes to it are lost.
        """
        stored = list(chain(self.parameters(), self.buffers()))
        if stored[0].is_meta or not self.filled:
            empty = torch.empty(self.out_features, self.in_features, device="meta")
            empty._is_hf_initialized = True  # type: ignore[attr-defined]
            return empty
        dtype = next((t.dtype for t in stored if t.is_floating_point()), None)
        if dtype is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._multiplied(stored[0].device, dtype)
        multiply = partial(self._multiplied, stored[0].device, dtype)
        return LazyWeight.of((self.out_features, self.in_features), stored[0], dtype, multiply)

    def _multiplied(self, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        unit = torch.eye(self.in_features, dtype=dtype, device=device)
        return (self.forward(unit) - self.forward(torch.zeros_like(unit[:1]))).T

    def validate(self) -> str | None:
        """Return what is wrong with loaded tensors, starting with a tensor's name, or None."""
        return None

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}"


class FactoredLinear(CompactLinear):
    """A `CompactLinear` with W_hat of rank at most `rank`, multiplied with in two steps:

        z = first(x)  (..., rank),   y = finish(z)  (..., out)

    execution: called with (layer, x) in place of the two steps if a faster way was found
    (`spectrim.fuse`); it is not part of the layer's state.

    LOSSLESS: any factors of that rank are stored without loss. Otherwise the losses predicted
    for cut factors do not hold for this kind, and a refinement trains the layer's own tensors.
    TWO_STEPS: the two steps are all of the product, so that they may be run in another way.
    """

    LOSSLESS = True
    TWO_STEPS = True
    execution: Callable[[Any, Tensor], Tensor] | None = None

    @property
    @abstractmethod
    def first(self) -> nn.Linear:
        """Return the child that reads the input (in -> rank)."""

    @abstractmethod
    def finish(self, z: Tensor) -> Tensor:
        """Return the output (..., out) from the product `z` (..., rank) of `first`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.execution is not None:
            return self.execution(self, x)
        return self.finish(self.first(x))

    @classmethod
    def cost(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return the stored weights at `rank`, without the bias and a bit per output.

        By default those of `matrices`; out_features is summed over layers that share a basis.
        """
        shapes = cls.matrices(out_features, in_features, rank)
        return sum(rows * columns for rows, columns in shapes)

    @classmethod
    def matrices(
        cls, out_features: int, in_features: int, rank: int
    ) -> tuple[tuple[int, int], ...]:
        """Return the shapes (rows, columns) of the linear children at `rank`, to count bytes.

        Raises InputError for a kind that does not store plain matrices.
        """
        raise InputError(
            f"{cls.__name__} does not store plain matrices, so its factors cannot be "
            "quantized; choose pivoted or lowrank"
        )

    @classmethod
    @abstractmethod
    def from_factors(cls, left: Tensor, right: Tensor, bias: Tensor | None) -> FactoredLinear:
        """Return a float64 layer from left (out, r), right (r, in) and bias (out,) or None."""

    @classmethod
    def from_full(
        cls, factors: Factors, rank: int, bias: Tensor | None, options: Any
    ) -> FactoredLinear:
        """Return a float64 layer of `rank` for a decomposition and the dense layer's bias.

        options: the kind's `Options`; in this base class the factors are only cut.
        """
        return cls.from_factors(*factors.truncated(rank), factors.bias(rank, bias))

    @classmethod
    @abstractmethod
    def empty(cls, shape: tuple[int, int], rank: int, bias: bool) -> FactoredLinear:
        """Return an uninitialized layer of weight shape (out, in), to be filled by a loader."""


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return an `nn.Linear` that holds the given tensors (out, in) and (out,)."""
    out_features, in_features = weight.shape
    module = nn.Linear(in_features, out_features, bias is not None, device="meta")
    module.weight = nn.Parameter(weight.contiguous().clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.clone())
    return module


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(torch.float64)
