"""Both factors of a layer in one kernel, for the few tokens of a decoding step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spectrim.inference.kernels import lowrank_matmul, second_of
from spectrim.inference.kernels.dispatch import runs_kernel
from spectrim.inference.kernels.lowrank_matmul import MOST_TOKENS
from spectrim.layers import FactoredLinear


class FewTokens:
    """The execution of a layer for inputs x (..., in) that it `takes`."""

    def __init__(self) -> None:
        self._position: Tensor | None = None
        self._place: Tensor | None = None

    def takes(self, layer: FactoredLinear, x: Tensor) -> bool:
        few = x.numel() <= MOST_TOKENS * layer.in_features
        return few and not torch.is_grad_enabled() and runs_kernel(x)

    def __call__(self, layer: FactoredLinear, x: Tensor) -> Tensor:
        second = second_of(layer)
        if second.position is not None:
            if second.position is not self._position:
                self._position, self._place = second.position, second.position.argsort()
            second = replace(second, place=self._place)
        return lowrank_matmul(x, layer.first.weight, layer.first.bias, second)
