"""Next-token cross-entropy, summed, with one copy of the logits in memory.

    loss = -sum_t log p_t(label_t),   d loss / d logits = p - onehot(label)

The logarithms of the probabilities are kept for the backward pass, which makes the gradient in
their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over logits (n, V) in float32 or float64 and labels (n,), IGNORED if not counted.

    Differentiable once, and its backward pass can be run once.
    """
    return _SummedCrossEntropy.apply(logits, labels)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        counted = labels != IGNORED
        chosen = labels.masked_fill(~counted, 0)[:, None]
        ctx.log_p = logits.log_softmax(-1)
        ctx.save_for_backward(chosen, counted)
        return -ctx.log_p.gather(1, chosen)[:, 0][counted].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        chosen, counted = ctx.saved_tensors
        gradient = ctx.log_p.exp_()
        del ctx.log_p
        gradient.scatter_add_(1, chosen, gradient.new_full(chosen.shape, -1.0))
        return gradient.mul_((scale * counted)[:, None]), None
