"""Reference of `lowrank_matmul`: two products."""

from __future__ import annotations

from torch import Tensor, nn

from spectrim.inference.kernels.factor_spec import Second


def lowrank_matmul(
    x: Tensor, right: Tensor, right_bias: Tensor | None, second: Second
) -> Tensor:
    z = nn.functional.linear(x, right, right_bias)
    return second.apply(z)
