"""Kernel forward, and backward from the factors without a weight of full size.

    y = A z + b,   z = R x + c
    dz = A^T dy,   dA = dy z^T,   db = sum dy,   dx = R^T dz,   dR = dz x^T,   dc = sum dz

A pivoted layer's dy is first put in the order [pivots, others]; the pivots' part goes straight
to dz. z is recomputed rather than stored: it costs one thin product.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectrim.inference.kernels.factor_spec import Second

Given = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]
"""x (..., in), right, right_bias, the second weight and its bias."""


class LowRankMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        right: Tensor,
        right_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        second: Second,
    ) -> Tensor:
        """Run the kernel; second: the places of a pivoted layer's outputs."""
        from spectrim.inference.kernels.lowrank_matmul import triton

        ctx.save_for_backward(x, right, right_bias, weight)
        ctx.second = replace(second, weight=weight.detach(), bias=None)
        return triton.lowrank_matmul(
            x, right, right_bias, replace(second, weight=weight, bias=bias)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, right, right_bias, weight = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        tokens = x.reshape(-1, x.shape[-1])
        z = functional.linear(tokens, right, right_bias)
        dz, others = _to_rank(dy, weight, ctx.second)
        needs = ctx.needs_input_grad
        return (
            (dz @ right).view(x.shape) if needs[0] else None,
            dz.T @ tokens if needs[1] else None,
            dz.sum(0) if needs[2] else None,
            others.T @ z if needs[3] else None,
            dy.sum(0) if needs[4] else None,
            None,
        )


def _to_rank(dy: Tensor, weight: Tensor, second: Second) -> tuple[Tensor, Tensor]:
    """Return dz (T, r), and the part of dy that belongs to the rows of `weight`."""
    if second.position is None:
        return dy @ weight, dy
    place = second.position.argsort() if second.place is None else second.place
    ordered = dy[:, place]
    pivots, others = ordered[:, : second.rank], ordered[:, second.rank :]
    return pivots + others @ weight, others


def needs_gradient(given: Given) -> bool:
    """Return whether autograd will need a gradient."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
