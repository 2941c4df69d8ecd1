"""`y = A (R x + c) + b` for a few tokens in one kernel."""

from __future__ import annotations

from torch import Tensor

from spectrim.inference.kernels.dispatch import runs_kernel
from spectrim.inference.kernels.factor_spec import Second
from spectrim.inference.kernels.lowrank_matmul import reference

MOST_TOKENS = 16


def lowrank_matmul(
    x: Tensor, right: Tensor, right_bias: Tensor | None, second: Second
) -> Tensor:
    """Map x (..., in) by right (r, in), right_bias (r,) or None and `second` to (..., out).

    More than `MOST_TOKENS` tokens run as two products. Gradients reach all five tensors,
    including those of the second factor (`gradients`).
    """
    if runs_kernel(x) and x.numel() <= MOST_TOKENS * x.shape[-1]:
        from spectrim.inference.kernels.lowrank_matmul import gradients, triton

        given = (x, right, right_bias, second.weight, second.bias)
        if gradients.needs_gradient(given):
            differentiable: Tensor = gradients.LowRankMatmul.apply(*given, second)
            return differentiable
        return triton.lowrank_matmul(x, right, right_bias, second)
    return reference.lowrank_matmul(x, right, right_bias, second)
