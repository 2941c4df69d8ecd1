"""Random factors of one layer, and how far a result may be from exact arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.inference.kernels import Second, second_of
from spectrim.layers import FactoredLinear, layer_class
from tests.inference.kernels.conftest import DEVICE
from tests.tolerances import KERNEL_RELATIVE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Layer:
    """The same numbers as kernels read them, and as float64."""

    module: FactoredLinear
    exact: FactoredLinear

    @property
    def second(self) -> Second:
        return second_of(self.module)

    @property
    def right(self) -> nn.Linear:
        return self.module.first


def random_layer(kind: str, shape: tuple[int, int], rank: int, dtype, seed=0, bias=True):
    """shape (out, in)."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    left, right = rows(shape[0], rank) / rank**0.5, rows(rank, shape[1]) / shape[1] ** 0.5
    layer = layer_class(kind).from_factors(left, right, rows(shape[0]) if bias else None)
    layer = layer.to(dtype).requires_grad_(False)
    twin = layer_class(kind).empty(shape, rank, bias).double().requires_grad_(False)
    twin.load_state_dict(layer.state_dict())
    return Layer(layer.to(DEVICE), twin)


def random_tensor(*size: int, dtype=torch.float32, seed=0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def close(result: Tensor, exact: Tensor) -> bool:
    error = (result.double().cpu() - exact).norm() / exact.norm()
    return bool(error <= KERNEL_RELATIVE[result.dtype])
