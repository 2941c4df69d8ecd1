"""The base class of compressed layers, whose matrix is computed for every product.

Numbers that a cast of the model must not change (codes, indices, scales) are buffers of
integers; a loader finds every tensor by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import InputError
from spectrim.layers._base import double


class QuantizationProblem(Protocol):
    """A weight (out, in) to quantize, with statistics of its inputs."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    def statistic(self, name: str) -> Any: ...


class Adapter(nn.Module):
    """`up(down(x))`, trained beside a frozen weight."""

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        rank = min(rank, in_features, out_features)
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.up.weight.detach().to(dtype) @ self.down.weight.detach().to(dtype)


class CompressedLinear(nn.Module, ABC):
    """`y = Q(W) x + b`, where Q(W) (out, in) is stored in fewer bytes than W.

    adapter: a trained addition, `y = Q(W) x + b + up(down(x))`.
    """

    adapter: Adapter | None
    OPTIONS: ClassVar[type]

    def __init__(
        self,
        shape: tuple[int, int],
        bias: Tensor | None,
        options: Any,
        buffers: Mapping[str, Tensor] | None = None,
    ):
        super().__init__()
        self.out_features, self.in_features = shape
        self.options = options
        self.adapter = None
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        for name, tensor in (buffers or {}).items():
            self.register_buffer(name, tensor)

    @classmethod
    def parsed(cls, given: Mapping[str, Any]) -> Any:
        """Return the options stored in a checkpoint. Raises InputError."""
        try:
            return cls.OPTIONS(**given)
        except TypeError as error:
            raise InputError(f"{cls.__name__} does not take the options {given}") from error

    @property
    def stated(self) -> dict[str, Any]:
        """Return the options as plain values, for `parsed`."""
        return asdict(self.options)

    @classmethod
    @abstractmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Any) -> CompressedLinear:
        """Return an uninitialized layer of weight shape (out, in), to be filled by a loader.

        Raises ModelError or InputError for an unsupported shape or machine.
        """

    @classmethod
    @abstractmethod
    def cost(cls, shape: tuple[int, int], options: Any, itemsize: int) -> int:
        """Return the stored bytes without the bias; `itemsize` of the model's dtype."""

    @abstractmethod
    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return Q(W) (out, in)."""

    @property
    def weight(self) -> Tensor:
        """Return the whole matrix (out, in) in float32."""
        return self._whole(torch.float32)

    def _whole(self, dtype: torch.dtype) -> Tensor:
        alone = self.matrix(dtype)
        return alone if self.adapter is None else alone + self.adapter.matrix(dtype)

    def validate(self) -> str | None:
        """Return the name of an invalid tensor and what is wrong with it, or None."""
        return None

    def product(self, x: Tensor) -> Tensor:
        """Return Q(W) x + b."""
        return functional.linear(x, self.matrix(x.dtype), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.adapter is None else y + self.adapter(x)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """Return the whole matrix and the bias, float64."""
        return self._whole(torch.float64).detach(), double(self.bias)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, {self.options}"


def empty_bias(out_features: int, wanted: bool) -> Tensor | None:
    return torch.empty(out_features) if wanted else None
