"""The cost of errors in a block's output, to second order.

    KL(p(h) || p(h + e)) ~= 1/2 e^T C_g e,   C_g = E[g g^T],   g = d(-log p(y)) / dh,  y ~ p

h the output of a block at one token, g summed over the predictions that it reaches, y labels
drawn from the original's own predictions. A plain square counts directions that no later
layer reads (the length of what is normalized next, a few very large coordinates) like those
that decide the prediction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from spectrim.linalg.psd import cholesky
from spectrim.models.hooks import attach_hooks
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.training.forward import Tokens

SEQUENCES = 128
"""That the covariances are taken over."""
DAMPING = 0.03
"""Of the mean diagonal: directions without measured cost keep a little of it."""


def output_roots(model: PreTrainedModel, tokens: Tokens, rows: int) -> list[Tensor]:
    """L (d, d) float32 of every block, `C_g = L L^T`, `rows` sequences at a time."""
    generator = torch.Generator().manual_seed(0)
    sums: list[Tensor] = []
    for chunk in torch.arange(min(len(tokens), SEQUENCES)).split(rows):
        for number, gradient in enumerate(_gradients(model, tokens, chunk, generator)):
            square = gradient.T @ gradient
            if number == len(sums):
                sums.append(square)
            else:
                sums[number] += square
    names = [f"gradient covariance of the output of {n}" for n, _ in decoder_blocks(model)]
    return [
        cholesky(total, DAMPING, name).float() for total, name in zip(sums, names, strict=True)
    ]


def _gradients(
    model: PreTrainedModel, tokens: Tokens, rows: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Return the summed loss's gradients, (real tokens, d) float64, at each block's output."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        found.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    after = [(block, keep) for _, block in decoder_blocks(model)]
    with attach_hooks(after=after), torch.enable_grad():
        logits = tokens.run(model, rows).logits.float()
        labels = _labels(logits, tokens.real(rows), generator)
        loss = cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, found)
    real = tokens.real(rows)
    return [gradient[real].double() for gradient in gradients]


def _labels(logits: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
    """One label drawn per position (B T,); -100 on padding."""
    probabilities = logits.detach().softmax(-1).flatten(0, 1).cpu()
    drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return drawn.to(logits.device).masked_fill(~real.flatten(), -100)
