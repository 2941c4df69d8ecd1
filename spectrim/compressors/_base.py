"""What every compressed layer has in common: it multiplies with a matrix made when needed.

Numbers that a cast of the model must not touch (codes, indices, scales) are buffers of
integers; a loader finds every tensor by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import InputError
from spectrim.layers._base import double


class CompressedLinear(nn.Module, ABC):
    """`y = Q(W) x + b`, where Q(W) (out, in) is stored in fewer bytes than W."""

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
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        for name, tensor in (buffers or {}).items():
            self.register_buffer(name, tensor)

    @classmethod
    def parsed(cls, given: Mapping[str, Any]) -> Any:
        """The options that a checkpoint states. Raises InputError."""
        try:
            return cls.OPTIONS(**given)
        except TypeError as error:
            raise InputError(f"{cls.__name__} does not take the options {given}") from error

    @property
    def stated(self) -> dict[str, Any]:
        """The options as plain values, for `parsed`."""
        return asdict(self.options)

    @classmethod
    @abstractmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Any) -> CompressedLinear:
        """An uninitialised layer of weight shape (out, in), to be filled by a loader.

        Raises ModelError or InputError for a shape or machine that it cannot serve.
        """

    @classmethod
    @abstractmethod
    def cost(cls, shape: tuple[int, int], options: Any, itemsize: int) -> int:
        """Stored bytes without the bias; `itemsize` of the model's dtype."""

    @abstractmethod
    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Q(W) (out, in)."""

    @property
    def weight(self) -> Tensor:
        """Q(W) (out, in) in float32, where a factored layer reads its children."""
        return self.matrix(torch.float32)

    def fault(self) -> str | None:
        """The name of a tensor that no compressor writes, and what is wrong with it."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.matrix(x.dtype), self.bias)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """Q(W) and the bias, float64."""
        return self.matrix(torch.float64).detach(), double(self.bias)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, {self.options}"


def empty_bias(out_features: int, wanted: bool) -> Tensor | None:
    return torch.empty(out_features) if wanted else None
