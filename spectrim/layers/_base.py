"""What every factored layer has in common.

A kind's children are plain `nn.Linear` modules, so that adapters, quantisers, exporters
and tensor parallelism find what they know; its tensors are found by name on loading.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class FactoredLinear(nn.Module, ABC):
    """A linear map `y = W_hat x + b` with W_hat (out, in) of rank at most `rank`."""

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank

    @classmethod
    @abstractmethod
    def cost(cls, out_features: int, in_features: int, rank: int) -> int:
        """Stored weights (bias and packed indices not counted) at `rank`."""

    @classmethod
    @abstractmethod
    def from_factors(cls, left: Tensor, right: Tensor, bias: Tensor | None) -> FactoredLinear:
        """A float64 layer from left (out, r), right (r, in) and bias (out,) or None."""

    @classmethod
    @abstractmethod
    def empty(cls, shape: tuple[int, int], rank: int, bias: bool) -> FactoredLinear:
        """An uninitialised layer of weight shape (out, in), to be filled by a loader."""

    @abstractmethod
    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) and bias (out,) that this layer multiplies with, float64."""

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}"


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` that holds the given tensors (out, in) and (out,)."""
    out_features, in_features = weight.shape
    module = nn.Linear(in_features, out_features, bias is not None, device="meta")
    module.weight = nn.Parameter(weight.contiguous().clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.clone())
    return module


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(torch.float64)
